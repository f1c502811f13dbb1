"""Who runs when: pausing, priorities, device classes, deadlines, engines that hang."""

from __future__ import annotations

import grpc
import pytest

from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2
from elite.trainer.v1 import trainer_pb2
from tests.support.run_specs import a_spec
from tests.support.trainer_stack import TrainerStack, is_alive

RUNNING = trainer_pb2.RUN_STATE_RUNNING
PAUSED = trainer_pb2.RUN_STATE_PAUSED
FAILED = trainer_pb2.RUN_STATE_FAILED
SUCCEEDED = trainer_pb2.RUN_STATE_SUCCEEDED
CANCELLED = trainer_pb2.RUN_STATE_CANCELLED


def test_a_running_run_is_paused_and_goes_on(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    stack.start_worker()
    run_id = stack.create("pause=0.05", steps=60)
    stack.wait_for_steps(run_id, 3)
    engine = stack.engine_pid(run_id)
    asked = stack.stub.PauseRun(trainer_pb2.PauseRunRequest(run_id=run_id)).run
    assert asked.pause_requested
    run = stack.wait_for(run_id, PAUSED, SUCCEEDED)
    assert run.state == PAUSED
    assert not run.pause_requested
    assert not is_alive(engine)
    # Others are not kept waiting.
    other = stack.create()
    assert stack.wait_for(other, SUCCEEDED, FAILED).state == SUCCEEDED
    assert stack.get(run_id).state == PAUSED

    resumed = stack.stub.ResumeRun(trainer_pb2.ResumeRunRequest(run_id=run_id)).run
    # The worker is free and may have it already.
    assert resumed.state in (trainer_pb2.RUN_STATE_RESUMING, RUNNING)
    run = stack.wait_for(run_id, SUCCEEDED, FAILED)
    assert (run.state, run.attempt_count) == (SUCCEEDED, 2)
    assert stack.starts(run_id) == ["resume=False", "resume=True"]


def test_an_engine_that_fails_while_it_is_asked_to_stop_has_stopped(
    lonely_trainer: TrainerStack,
) -> None:
    """A signal amid an import makes the import fail; the run is paused, not failed."""
    stack = lonely_trainer
    stack.start_worker()
    run_id = stack.create("confused pause=0.05", steps=30)
    stack.wait_for_steps(run_id, 2)
    stack.stub.PauseRun(trainer_pb2.PauseRunRequest(run_id=run_id))
    assert stack.wait_for(run_id, PAUSED, FAILED, SUCCEEDED).state == PAUSED
    stack.stub.ResumeRun(trainer_pb2.ResumeRunRequest(run_id=run_id))
    assert stack.wait_for(run_id, SUCCEEDED, FAILED).state == SUCCEEDED


def test_a_waiting_run_is_paused_at_once_and_may_be_cancelled(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    run_id = stack.create()
    paused = stack.stub.PauseRun(trainer_pb2.PauseRunRequest(run_id=run_id)).run
    assert paused.state == PAUSED
    again = stack.stub.PauseRun(trainer_pb2.PauseRunRequest(run_id=run_id)).run
    assert again.state == PAUSED
    stack.start_worker()
    # Its queue message comes to nothing.
    assert stack.wait_for(stack.create(), SUCCEEDED).state == SUCCEEDED
    assert stack.get(run_id).state == PAUSED
    stack.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id))
    assert stack.get(run_id).state == CANCELLED


def test_an_ended_run_is_not_paused(trainer: TrainerStack) -> None:
    run_id = trainer.create()
    trainer.wait_for(run_id, SUCCEEDED)
    with pytest.raises(grpc.RpcError) as caught:
        trainer.stub.PauseRun(trainer_pb2.PauseRunRequest(run_id=run_id))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "is succeeded; one that has not ended can be paused" in caught.value.details()


def test_a_higher_priority_goes_first_and_within_one_the_older(
    lonely_trainer: TrainerStack,
) -> None:
    stack = lonely_trainer
    low = [_create(stack, priority=0) for _ in range(2)]
    high = _create(stack, priority=9)
    middle = _create(stack, priority=4)
    stack.start_worker()
    runs = [stack.wait_for(one, SUCCEEDED, FAILED) for one in (high, middle, *low)]
    started = [run.started_at.ToMilliseconds() for run in runs]
    assert started == sorted(started)
    assert {run.state for run in runs} == {SUCCEEDED}


def test_a_run_goes_to_a_worker_of_its_device_class(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    cpu_worker = stack.start_worker(device_classes="cpu")
    on_card = _create(stack, device_name="NVIDIA GeForce RTX 3090")
    on_cpu = _create(stack)
    assert stack.get(on_card).device_class == "nvidia-geforce-rtx-3090"
    assert stack.wait_for(on_cpu, SUCCEEDED, FAILED).worker_name == cpu_worker.name
    detail = stack.get(on_card).status_detail
    assert detail == "waiting: no worker for nvidia-geforce-rtx-3090 is connected"
    card_worker = stack.start_worker(device_classes="nvidia-geforce-rtx-3090")
    run = stack.wait_for(on_card, SUCCEEDED, FAILED)
    assert (run.state, run.worker_name) == (SUCCEEDED, card_worker.name)


def test_a_run_over_its_time_is_saved_and_fails(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    stack.start_worker()
    run_id = _create(stack, orders="pause=0.05", steps=1000, max_run_seconds=2)
    run = stack.wait_for(run_id, FAILED, SUCCEEDED)
    assert run.state == FAILED
    assert run.error.cause == trainer_pb2.FAILURE_CAUSE_DEADLINE_EXCEEDED
    assert "spec.max_run_seconds (2) have passed" in run.error.message
    assert list((stack.runs_directory / run_id / "checkpoints").iterdir())
    assert run.attempt_count == 1


def test_an_engine_that_hangs_is_ended_and_started_again(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    stack.start_worker(stall_seconds=1, maximum_deliveries=2)
    run_id = stack.create("stubborn")
    first = stack.engine_pid(run_id)
    run = stack.wait_for(run_id, FAILED, SUCCEEDED)
    assert run.error.cause == trainer_pb2.FAILURE_CAUSE_STALLED
    assert "said nothing for" in run.error.message
    assert run.attempt_count == 2
    assert not is_alive(first)


def _create(
    stack: TrainerStack, *, orders: str = "succeed", steps: int = 3, device_name: str = "",
    **fields: int,
) -> str:  # fmt: skip
    spec = a_spec(stack.data, orders, steps)
    for name, value in fields.items():
        setattr(spec, name, value)
    if device_name:
        spec.plan.device_kind = profiler_pb2.DEVICE_KIND_CUDA
        spec.plan.planned_on.CopyFrom(planner_pb2.PlannedOn(device_name=device_name))
    request = trainer_pb2.CreateRunRequest(spec=spec)
    run_id: str = stack.stub.CreateRun(request, timeout=10).run.run_id
    return run_id
