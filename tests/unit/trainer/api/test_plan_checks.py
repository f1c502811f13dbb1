"""What the API refuses of a plan and its training settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import json_format

from services.common.errors import ServiceError
from services.trainer.api.plan_checks import check_plan
from services.trainer.engine.failures import EngineError
from services.trainer.engine.specification import read_specification
from tests.support.run_specs import a_spec


@pytest.mark.parametrize(("warmup_steps", "is_refused"), [(2, False), (3, True), (4, True)])
def test_a_warm_up_that_the_engine_refuses_is_refused_before(
    tmp_path: Path, warmup_steps: int, is_refused: bool
) -> None:
    spec = a_spec(tmp_path, steps=3)
    spec.training.warmup_steps = warmup_steps
    plan_path, spec_path = tmp_path / "plan.json", tmp_path / "spec.json"
    plan_path.write_text(json_format.MessageToJson(spec.plan))
    spec_path.write_text(json_format.MessageToJson(spec))
    if not is_refused:
        check_plan(spec)
        read_specification(plan_path, spec_path)
        return
    with pytest.raises(EngineError, match=r"training\.warmup_steps"):
        read_specification(plan_path, spec_path)
    problem = rf"spec.training.warmup_steps: is {warmup_steps}, .* is 3: fewer than steps"
    with pytest.raises(ServiceError, match=problem):
        check_plan(spec)


@pytest.mark.parametrize("hub_id", ["/opt/models/secret", "../model", "a/b/c", "./model", ""])
def test_weights_that_are_not_of_the_hub_are_refused(tmp_path: Path, hub_id: str) -> None:
    spec = a_spec(tmp_path)
    spec.model_path = ""
    spec.plan.model.weights.hub_id = hub_id
    field = "spec.plan.model.weights.hub_id" if hub_id else "spec.model_path"
    with pytest.raises(ServiceError, match=f"{field}: is "):
        check_plan(spec)
    spec.plan.model.weights.hub_id = "owner/name"
    check_plan(spec)
