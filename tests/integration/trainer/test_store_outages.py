"""A store that is away, hangs, is started anew or comes back empty."""

from __future__ import annotations

import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.keys import run_key
from services.trainer.jobs.states import CANCELLED, FAILED, PLANNED, RUNNING, SUCCEEDED
from tests.support.refusals import reason_of
from tests.support.trainer_stack import TrainerStack, is_alive, wait_until


def health_of(stack: TrainerStack) -> int:
    with grpc.insecure_channel(stack.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="elite.trainer.v1.TrainerService")
        status: int = stub.Check(request, timeout=5).status
        return status


def test_store_down_is_unavailable_and_comes_back_with_everything(
    lonely_trainer: TrainerStack,
) -> None:
    stack = lonely_trainer
    stack.start_api(watch_outage_seconds=0.5)
    run_id = stack.create(request_id="before")
    wait_until(lambda: health_of(stack) == health_pb2.HealthCheckResponse.SERVING, "health")
    stack.valkey.kill()

    calls = [
        lambda: stack.create(),
        lambda: stack.create(request_id="during"),
        lambda: stack.get(run_id),
        lambda: stack.stub.ListRuns(trainer_pb2.ListRunsRequest()),
        lambda: stack.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id)),
        lambda: stack.stub.ResumeRun(trainer_pb2.ResumeRunRequest(run_id=run_id)),
        lambda: list(stack.watch(run_id)),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert reason_of(caught.value) == "STORE_UNAVAILABLE"
        assert "Redis at 127.0.0.1" in caught.value.details()
    wait_until(lambda: health_of(stack) == health_pb2.HealthCheckResponse.NOT_SERVING, "health")

    stack.valkey.start()
    wait_until(lambda: health_of(stack) == health_pb2.HealthCheckResponse.SERVING, "health")
    assert stack.get(run_id).state == PLANNED
    assert stack.create(request_id="before") == run_id
    assert len(stack.stub.ListRuns(trainer_pb2.ListRunsRequest()).runs) == 1
    stack.start_worker()
    assert stack.wait_for(run_id, SUCCEEDED, FAILED).state == SUCCEEDED


def test_a_watch_that_begins_in_an_outage_bears_it(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    run_id = stack.create()
    stack.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id))
    stack.valkey.kill()
    watcher, seen = stack.watch_aside(run_id)
    time.sleep(1.0)
    stack.valkey.start()
    watcher.join()
    assert [event.state_changed.to for event in seen][-1] == CANCELLED


def test_store_that_hangs_is_unavailable_too(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    run_id = stack.create()
    stack.valkey.freeze()
    for call in (lambda: stack.get(run_id), lambda: stack.create()):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    stack.valkey.thaw()
    wait_until(lambda: health_of(stack) == health_pb2.HealthCheckResponse.SERVING, "health")
    assert stack.get(run_id).state == PLANNED


def test_store_restarts_under_a_running_engine(lonely_trainer: TrainerStack) -> None:
    """The outage outlasts the lease; the engine never notices, and no event is lost."""
    stack = lonely_trainer
    stack.start_worker()
    run_id = stack.create("pause=0.1", steps=80)
    stack.wait_for_steps(run_id, 2)
    watcher, seen = stack.watch_aside(run_id)
    wait_until(lambda: len(seen) > 0, "the watcher's first event")
    engine = stack.engine_pid(run_id)
    stack.valkey.kill()
    time.sleep(4.0)  # longer than the lease
    stack.valkey.start()

    run = stack.wait_for(run_id, SUCCEEDED, FAILED)
    watcher.join()
    assert run.state == SUCCEEDED
    assert run.attempt_count == 1
    assert stack.engine_pid(run_id) == engine
    assert stack.steps_of(run_id) == list(range(1, 81))
    assert [e.step_completed.step for e in seen if e.HasField("step_completed")] == list(
        range(1, 81)
    )
    # The worker takes the next run as if nothing had been.
    assert stack.wait_for(stack.create(), SUCCEEDED, FAILED).state == SUCCEEDED


def test_store_that_lost_everything_gets_a_running_run_back(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    worker = stack.start_worker()
    run_id = stack.create("pause=0.1", steps=60, request_id="once")
    stack.wait_for_steps(run_id, 2)
    before, engine = stack.get(run_id), stack.engine_pid(run_id)
    stack.valkey.lose_everything()

    with stack.valkey.client() as client:
        wait_until(lambda: client.exists(run_key(run_id)) == 1, "the record", stack.describe)
    found = stack.get(run_id)
    assert found.state == RUNNING
    assert "recorded again after Redis had lost the run" in found.status_detail
    assert (found.spec, found.created_at, found.started_at, found.attempt_count) == (
        before.spec, before.created_at, before.started_at, 1,
    )  # fmt: skip
    assert stack.create("pause=0.1", steps=60, request_id="once") == run_id
    assert [run.run_id for run in stack.stub.ListRuns(trainer_pb2.ListRunsRequest()).runs] == [
        run_id
    ]
    # From here on all is as it was: its worker may die, and another finishes it.
    worker.kill()
    stack.start_worker()
    assert stack.wait_for(run_id, SUCCEEDED, FAILED).state == SUCCEEDED
    assert not is_alive(engine)
    assert stack.steps_of(run_id)[-1] == 60
    assert len(stack.starts(run_id)) == 2
    assert stack.wait_for(stack.create(), SUCCEEDED, FAILED).state == SUCCEEDED


def test_store_that_lost_everything_does_not_interrupt_a_run(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    stack.start_worker()
    run_id = stack.create("pause=0.1", steps=40)
    stack.wait_for_steps(run_id, 2)
    watcher, seen = stack.watch_aside(run_id)
    wait_until(lambda: len(seen) > 0, "the watcher's first event")
    with stack.valkey.client() as client:
        client.flushall()
        wait_until(lambda: client.exists(run_key(run_id)) == 1, "the record", stack.describe)
    run = stack.wait_for(run_id, SUCCEEDED, FAILED)
    watcher.join()
    assert seen[-1].state_changed.to == SUCCEEDED
    assert stack.steps_of(run_id)[-1] == 40
    assert (run.state, run.attempt_count) == (SUCCEEDED, 1)
    assert stack.starts(run_id) == ["resume=False"]
    assert stack.wait_for(stack.create(), SUCCEEDED, FAILED).state == SUCCEEDED


def test_run_that_ends_while_the_store_is_away_is_recorded(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    stack.start_worker()
    run_id = stack.create("pause=0.1", steps=10)
    stack.wait_for_steps(run_id, 1)
    stack.valkey.kill()
    engine = stack.engine_pid(run_id)
    wait_until(lambda: not is_alive(engine), "the engine's end")
    stack.valkey.start()
    assert stack.wait_for(run_id, SUCCEEDED, FAILED).state == SUCCEEDED
    assert stack.steps_of(run_id) == list(range(1, 11))
