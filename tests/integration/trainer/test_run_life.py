"""A run from CreateRun to its end, through the real API, queue, worker and supervisor."""

from __future__ import annotations

import itertools
import os
import signal

import pytest

from elite.trainer.v1 import trainer_pb2
from tests.support.trainer_stack import TrainerStack, is_alive, wait_until

RUNNING = trainer_pb2.RUN_STATE_RUNNING
SUCCEEDED = trainer_pb2.RUN_STATE_SUCCEEDED
FAILED = trainer_pb2.RUN_STATE_FAILED
CANCELLED = trainer_pb2.RUN_STATE_CANCELLED


def states(events: list[trainer_pb2.RunEvent]) -> list[str]:
    """Names of the states the events tell of."""
    changed = [event.state_changed.to for event in events if event.HasField("state_changed")]
    return [trainer_pb2.RunState.Name(state).removeprefix("RUN_STATE_") for state in changed]


def test_run_succeeds_and_its_record_tells_everything(trainer: TrainerStack) -> None:
    run_id = trainer.create("succeed", steps=4)
    events = list(trainer.watch(run_id))
    run = trainer.get(run_id)

    assert run.state == SUCCEEDED
    assert states(events) == ["PENDING", "PLANNED", "RUNNING", "SUCCEEDED"]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds.count("step_completed") == 4
    assert kinds[-2:] == ["adapter_saved", "state_changed"]
    assert all(event.run_id == run_id and event.HasField("time") for event in events)
    assert run.adapter_path == str(trainer.runs_directory / run_id / "adapter")
    assert (run.progress.completed_steps, run.progress.total_steps) == (4, 4)
    assert (run.progress.held_out_loss_before, run.progress.held_out_loss_after) == (3.0, 1.5)
    assert (run.progress.measured_peak_bytes, run.progress.predicted_peak_bytes) == (1000, 1100)
    assert (run.attempt_count, run.worker_name) == (1, "worker0@test")
    assert run.created_at.ToMilliseconds() <= run.started_at.ToMilliseconds()
    assert run.started_at.ToMilliseconds() <= run.finished_at.ToMilliseconds()
    assert not run.HasField("error")


def test_several_runs_run_one_after_another(trainer: TrainerStack) -> None:
    run_ids = [trainer.create() for _ in range(3)]
    runs = [trainer.wait_for(run_id, SUCCEEDED) for run_id in run_ids]
    for earlier, later in itertools.pairwise(runs):
        assert earlier.finished_at.ToMilliseconds() <= later.started_at.ToMilliseconds()


@pytest.mark.parametrize(
    ("orders", "cause", "text"),
    [
        ("engine_failed=BAD_DATA", trainer_pb2.FAILURE_CAUSE_BAD_DATA, "failed as told"),
        ("crash", trainer_pb2.FAILURE_CAUSE_INTERNAL, "exited with status 1"),
        ("exit=0", trainer_pb2.FAILURE_CAUSE_INTERNAL, "without saving an adapter"),
        ("sigsegv", trainer_pb2.FAILURE_CAUSE_INTERNAL, "SIGSEGV"),
    ],
)
def test_failing_engine_fails_the_run_with_its_cause(
    trainer: TrainerStack, orders: str, cause: trainer_pb2.FailureCause, text: str
) -> None:
    run_id = trainer.create(orders)
    assert states(list(trainer.watch(run_id)))[-1] == "FAILED"
    run = trainer.get(run_id)
    assert run.state == FAILED
    assert run.error.cause == cause
    assert text in run.error.message
    assert "fake engine: what it says on stderr" in run.error.stderr_tail
    assert run.attempt_count == 1


def test_an_engine_killed_from_outside_is_started_again_but_not_for_ever(
    trainer: TrainerStack,
) -> None:
    run = trainer.wait_for(trainer.create("sigkill"), SUCCEEDED, FAILED)
    assert (run.state, run.error.cause) == (FAILED, trainer_pb2.FAILURE_CAUSE_KILLED)
    assert run.attempt_count == 3
    assert "taken up 3 times" in run.error.message
    assert "SIGKILL" in run.error.message
    assert "fake engine: what it says on stderr" in run.error.stderr_tail


def test_crash_keeps_the_traceback(trainer: TrainerStack) -> None:
    run = trainer.wait_for(trainer.create("crash"), FAILED)
    assert "RuntimeError: the fake engine crashed as told" in run.error.stderr_tail


def test_garbage_on_the_event_pipe_is_skipped(trainer: TrainerStack) -> None:
    run = trainer.wait_for(trainer.create("garbage", steps=2), SUCCEEDED, FAILED)
    assert run.state == SUCCEEDED
    assert run.progress.completed_steps == 2


def test_grandchild_of_the_engine_neither_delays_nor_survives(trainer: TrainerStack) -> None:
    run_id = trainer.create("grandchild")
    assert trainer.wait_for(run_id, SUCCEEDED, FAILED).state == SUCCEEDED
    grandchild = int((trainer.runs_directory / run_id / "grandchild.pid").read_text())
    wait_until(lambda: not is_alive(grandchild), "the grandchild's end")


def test_cancelled_while_running(trainer: TrainerStack) -> None:
    run_id = trainer.create("pause=0.05", steps=1000)
    trainer.wait_for_steps(run_id, 1)
    acknowledged = trainer.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id)).run
    assert acknowledged.state == RUNNING
    assert acknowledged.cancel_requested
    assert trainer.wait_for(run_id, CANCELLED, FAILED, SUCCEEDED).state == CANCELLED
    assert not is_alive(trainer.engine_pid(run_id))


def test_stubborn_engine_is_killed_after_the_grace(trainer: TrainerStack) -> None:
    run_id = trainer.create("stubborn")
    engine = trainer.engine_pid(run_id)
    trainer.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id))
    assert trainer.wait_for(run_id, CANCELLED, FAILED).state == CANCELLED
    assert not is_alive(engine)


def test_cancelled_run_resumes_from_its_checkpoint(trainer: TrainerStack) -> None:
    run_id = trainer.create("pause=0.05", steps=30)
    trainer.wait_for_steps(run_id, 2)
    trainer.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id))
    trainer.wait_for(run_id, CANCELLED)
    resumed = trainer.stub.ResumeRun(trainer_pb2.ResumeRunRequest(run_id=run_id)).run
    assert resumed.state in (trainer_pb2.RUN_STATE_RESUMING, RUNNING)
    assert not resumed.cancel_requested

    run = trainer.wait_for(run_id, SUCCEEDED, FAILED)
    assert run.state == SUCCEEDED
    assert trainer.starts(run_id) == ["resume=False", "resume=True"]
    events = list(trainer.watch(run_id))
    steps = [event.step_completed.step for event in events if event.HasField("step_completed")]
    assert steps == list(range(1, 31))
    assert states(events) == [
        "PENDING", "PLANNED", "RUNNING", "CANCELLED", "RESUMING", "RUNNING", "SUCCEEDED",
    ]  # fmt: skip


def test_engine_stopped_from_outside_goes_on(trainer: TrainerStack) -> None:
    run_id = trainer.create("pause=0.05", steps=20)
    trainer.wait_for_steps(run_id, 1)
    os.kill(trainer.engine_pid(run_id), signal.SIGTERM)
    assert trainer.wait_for(run_id, SUCCEEDED, FAILED).state == SUCCEEDED
    assert trainer.starts(run_id) == ["resume=False", "resume=True"]


def test_engine_that_never_comes_to_an_end_fails_at_the_limit(trainer: TrainerStack) -> None:
    run = trainer.wait_for(trainer.create("exit=75"), FAILED, SUCCEEDED)
    assert run.state == FAILED
    assert run.attempt_count == 3
    assert "taken up 3 times without saving anything new" in run.error.message
    assert "asked to stop" in run.error.message
    assert "fake engine: what it says on stderr" in run.error.stderr_tail
