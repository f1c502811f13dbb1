"""Plan and spec files: what is accepted, and what an unusable one says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf import json_format

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from services.trainer.engine.failures import EngineError
from services.trainer.engine.specification import Training, read_specification
from tests.fixtures.engine import LLAMA_LINEARS, a_plan, tiny_config, write_json


@pytest.fixture
def plan_path(tmp_path: Path) -> Path:
    return write_json(tmp_path / "plan.json", a_plan(tiny_config(), LLAMA_LINEARS))


def a_spec(**training) -> trainer_pb2.RunSpec:
    settings = trainer_pb2.TrainingSettings(steps=10, **training)
    return trainer_pb2.RunSpec(data=trainer_pb2.DataSource(path="/data"), training=settings)


def test_a_plan_alone_needs_data_and_steps(plan_path: Path) -> None:
    found = read_specification(plan_path, None, data_path="/src", steps=3)
    assert found.training == Training(steps=3)
    assert (found.data.path, found.window_tokens) == ("/src", 64)
    with pytest.raises(EngineError, match=r"data: is missing.*spec\.data\.path"):
        read_specification(plan_path, None, steps=3)


def test_options_go_before_the_spec(tmp_path: Path, plan_path: Path) -> None:
    spec = write_json(tmp_path / "spec.json", a_spec(learning_rate=0.5, evaluation_windows=0))
    found = read_specification(plan_path, spec, steps=4, model_path="/model")
    assert found.training == Training(steps=4, learning_rate=0.5, evaluation_windows=0)
    assert found.model_path == "/model"


def test_a_whole_plan_response_is_accepted(tmp_path: Path) -> None:
    response = planner_pb2.PlanResponse(chosen=a_plan(tiny_config(), LLAMA_LINEARS))
    response.tiers.add(tier=1, fits=True)
    path = write_json(tmp_path / "response.json", response)
    assert read_specification(path, None, data_path="/d", steps=1).plan == response.chosen


def test_a_response_without_a_plan_says_so(tmp_path: Path) -> None:
    path = tmp_path / "response.json"
    path.write_text('{"tiers": [{"tier": 1}]}')
    with pytest.raises(EngineError, match="no tier fits"):
        read_specification(path, None, data_path="/d", steps=1)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"tier": "one"}', "not the JSON of a Plan"),
        ('{"tier": 1, "surprise": 2}', "surprise"),
        ('{"tier": 1}', r"plan\.context_tokens: is 0.*plan\.lora: is missing"),
    ],
)
def test_unusable_plans_are_told_apart(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(EngineError, match=expected):
        read_specification(path, None, data_path="/d", steps=1)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"plan\.json cannot be read: No such file"):
        read_specification(tmp_path / "plan.json", None, data_path="/d", steps=1)


def test_every_missing_required_field_of_a_plan_is_named(tmp_path: Path, plan_path: Path) -> None:
    whole = json.loads(plan_path.read_text())
    for field in ("contextTokens", "targetTokens", "model", "lora", "execution"):
        path = tmp_path / f"without_{field}.json"
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != field}))
        name = json_format.ParseDict({}, planner_pb2.Plan()).DESCRIPTOR.fields_by_camelcase_name
        with pytest.raises(EngineError, match=name[field].name):
            read_specification(path, None, data_path="/d", steps=1)


def test_warm_up_must_end(tmp_path: Path, plan_path: Path) -> None:
    spec = write_json(tmp_path / "spec.json", a_spec(warmup_steps=10))
    with pytest.raises(EngineError, match=r"warmup_steps is 10: give fewer than .*\(10\)"):
        read_specification(plan_path, spec)
