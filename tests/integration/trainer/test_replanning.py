"""Memory that is not there: a real planner makes another plan, and the run goes on."""

from __future__ import annotations

import itertools

import grpc
import pytest

from elite.planner.v1 import planner_pb2, planner_pb2_grpc
from elite.trainer.v1 import trainer_pb2
from services.trainer.worker.replanning import NoPlanError, Replanner, compared, shortfalls, tighten
from tests.support.machines import GIBIBYTE, by_id
from tests.support.run_specs import a_spec
from tests.support.trainer_stack import TrainerStack

FAILED = trainer_pb2.RUN_STATE_FAILED
SUCCEEDED = trainer_pb2.RUN_STATE_SUCCEEDED
DEVICE = trainer_pb2.FAILURE_CAUSE_DEVICE_OUT_OF_MEMORY
HOST = trainer_pb2.FAILURE_CAUSE_HOST_OUT_OF_MEMORY
CARD = "nvidia-geforce-rtx-3090"


def a_request(tier: int = 4, **constraints: object) -> planner_pb2.PlanRequest:
    card = planner_pb2.HypotheticalMachine(
        gpu_id="rtx-3090", host_memory_bytes=64 * GIBIBYTE, disk_free_bytes=500 * GIBIBYTE
    )
    return planner_pb2.PlanRequest(
        machine=planner_pb2.Machine(hypothetical=card),
        model=by_id("smollm2-135m"),
        constraints=planner_pb2.Constraints(tier=tier, **constraints),
    )


def ask(address: str, request: planner_pb2.PlanRequest) -> planner_pb2.PlanResponse:
    with grpc.insecure_channel(address) as channel:
        response: planner_pb2.PlanResponse = planner_pb2_grpc.PlannerServiceStub(channel).Plan(
            request, timeout=10
        )
    return response


def a_planned_spec(stack: TrainerStack, planner: str, orders: str) -> trainer_pb2.RunSpec:
    (stack.data / "long.py").write_text("value = 1\n" * 10_000)  # a window of tier 4 and more
    spec = a_spec(stack.data, orders, steps=3)
    request = a_request()
    spec.plan.CopyFrom(ask(planner, request).chosen)
    spec.planned_by.CopyFrom(request)
    return spec


def create(stack: TrainerStack, spec: trainer_pb2.RunSpec) -> str:
    request = trainer_pb2.CreateRunRequest(spec=spec)
    run_id: str = stack.stub.CreateRun(request, timeout=10).run.run_id
    return run_id


def test_a_run_out_of_memory_goes_on_under_a_smaller_plan(
    lonely_trainer: TrainerStack, planner: str
) -> None:
    stack = lonely_trainer
    stack.start_worker(device_classes=CARD, planner_address=planner)
    spec = a_planned_spec(stack, planner, "")
    planned = spec.plan.gpu_memory.total_bytes
    spec.display_name = f"most_bytes={int(0.8 * planned)}"
    run_id = create(stack, spec)
    run = stack.wait_for(run_id, SUCCEEDED, FAILED)
    assert run.state == SUCCEEDED, run.error
    assert 1 <= run.replan_count <= 3
    assert run.attempt_count == 1 + run.replan_count
    assert run.spec.plan.gpu_memory.total_bytes <= 0.8 * planned
    assert run.spec.plan.tier == spec.plan.tier
    told = [e.replanned for e in stack.watch(run_id) if e.WhichOneof("event") == "replanned"]
    assert len(told) == run.replan_count
    sizes = [told[0].device_bytes_before, *(one.device_bytes_after for one in told)]
    assert sizes[0] == planned
    assert all(later <= 0.86 * earlier for earlier, later in itertools.pairwise(sizes))
    assert all(one.cause == DEVICE for one in told)


def test_planning_again_has_an_end(lonely_trainer: TrainerStack, planner: str) -> None:
    stack = lonely_trainer
    stack.start_worker(device_classes=CARD, planner_address=planner, maximum_replans=1)
    spec = a_planned_spec(stack, planner, "most_bytes=1")
    run = stack.wait_for(create(stack, spec), SUCCEEDED, FAILED)
    assert (run.state, run.error.cause, run.replan_count) == (FAILED, DEVICE, 1)
    assert "planned again 1 times already" in run.error.message


def test_without_the_question_there_is_no_other_plan(
    lonely_trainer: TrainerStack, planner: str
) -> None:
    stack = lonely_trainer
    stack.start_worker(device_classes=CARD, planner_address=planner)
    spec = a_planned_spec(stack, planner, "most_bytes=1")
    spec.ClearField("planned_by")
    run = stack.wait_for(create(stack, spec), SUCCEEDED, FAILED)
    assert (run.state, run.error.cause, run.attempt_count) == (FAILED, DEVICE, 1)


@pytest.mark.parametrize("cause", [DEVICE, HOST])
async def test_what_a_run_was_trained_with_stays(planner: str, cause: int) -> None:
    request = a_request(tier=8)
    plan = ask(planner, request).chosen
    run = trainer_pb2.Run(spec=trainer_pb2.RunSpec(plan=plan, planned_by=request))
    new = (await Replanner(planner, "").more_frugal(run, cause)).plan
    assert new.context_tokens == plan.context_tokens
    assert new.lora == plan.lora
    for name in ("base_precision", "compute_dtype", "optimizer", "key_value_head_count"):
        assert getattr(new.execution, name) == getattr(plan.execution, name)
    lossy = {one.id for one in new.optimizations if not one.exact}
    assert lossy <= {one.id for one in plan.optimizations}
    before, after = (
        (one.gpu_memory if cause == DEVICE else one.host_memory).total_bytes for one in (plan, new)
    )
    assert after <= 0.86 * before


def test_a_machine_with_less_than_the_plan_takes_is_told_by_resource(planner: str) -> None:
    response = ask(planner, a_request())
    plan, budget = response.chosen, response.budget
    assert shortfalls(plan, budget) == []
    budget.gpu_safe_bytes = plan.gpu_memory.total_bytes - 1
    budget.host_safe_bytes = plan.host_memory.total_bytes - 1
    assert [cause for cause, _ in shortfalls(plan, budget)] == [DEVICE, HOST]


def test_tightening_is_never_looser(planner: str) -> None:
    response = ask(planner, a_request())
    request = a_request()
    tighten(request, response.chosen, response.budget, DEVICE)
    budget = ask(planner, request).budget
    assert budget.gpu_bytes <= 0.86 * response.chosen.gpu_memory.total_bytes
    assert budget.host_bytes == response.budget.host_bytes


def test_no_plan_says_what_would_help(planner: str) -> None:
    old = ask(planner, a_request()).chosen
    nothing = ask(planner, a_request(headroom_fraction=0.9, host_memory_bytes=GIBIBYTE))
    with pytest.raises(NoPlanError, match=r"not there; for another plan: .+"):
        compared(old, nothing, DEVICE, "the plan's memory was not there")
