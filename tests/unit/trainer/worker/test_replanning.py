"""What another plan may change of a run, and what it is asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from services.trainer.worker.replanning import NoPlanError, compared, tighten
from tests.support.run_specs import a_plan

DEVICE = trainer_pb2.FAILURE_CAUSE_DEVICE_OUT_OF_MEMORY
HOST = trainer_pb2.FAILURE_CAUSE_HOST_OUT_OF_MEMORY

CHANGES: dict[str, Callable[[planner_pb2.Plan], None]] = {
    "window": lambda plan: setattr(plan, "context_tokens", plan.context_tokens + 1),
    "adapters": lambda plan: setattr(plan.lora, "rank", plan.lora.rank + 1),
    "base precision": lambda plan: setattr(
        plan.execution, "base_precision", planner_pb2.BASE_PRECISION_NF4
    ),
    "compute dtype": lambda plan: setattr(
        plan.execution, "compute_dtype", planner_pb2.DTYPE_FLOAT16
    ),
    "optimizer": lambda plan: setattr(
        plan.execution, "optimizer", planner_pb2.OPTIMIZER_KIND_ADAMW_8BIT
    ),
    "key-value heads": lambda plan: setattr(plan.execution, "key_value_head_count", 1),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_plan_that_changes_what_was_trained_is_none(what: str) -> None:
    old, response = a_plan(), planner_pb2.PlanResponse(chosen=a_plan())
    assert compared(old, response, DEVICE, "it was not there").plan == old
    CHANGES[what](response.chosen)
    with pytest.raises(NoPlanError, match=f"every other plan changes the run's {what}"):
        compared(old, response, DEVICE, "it was not there")


@pytest.mark.parametrize("cause", [DEVICE, HOST])
def test_what_is_asked_for_is_less_after_headroom_was_taken(
    cause: trainer_pb2.FailureCause,
) -> None:
    """The planner takes headroom off what it is given: it is given that much more."""
    plan, request = a_plan(), planner_pb2.PlanRequest()
    plan.gpu_memory.total_bytes, plan.host_memory.total_bytes = 1_000_000, 3_000_000
    tighten(request, plan, planner_pb2.Budget(headroom_fraction=0.2), cause)
    given, taken = (
        (request.constraints.host_memory_bytes, 3_000_000) if cause == HOST
        else (request.constraints.gpu_memory_bytes, 1_000_000)
    )  # fmt: skip
    assert 0.8 * given == pytest.approx(0.85 * taken)
