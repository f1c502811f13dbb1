"""Things that break: the API, the worker, its pool child, the queue. Nothing may be lost."""

from __future__ import annotations

import os
import signal
import threading
import time

import grpc
import pytest

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.keys import lease_key, queue_name, run_key
from services.trainer.jobs.queue import RunQueue
from tests.support.api_process import ApiProcess
from tests.support.refusals import reason_of
from tests.support.run_specs import a_spec
from tests.support.trainer_stack import TrainerStack, is_alive, wait_until

RUNNING = trainer_pb2.RUN_STATE_RUNNING
RESUMING = trainer_pb2.RUN_STATE_RESUMING
SUCCEEDED = trainer_pb2.RUN_STATE_SUCCEEDED
FAILED = trainer_pb2.RUN_STATE_FAILED
CANCELLED = trainer_pb2.RUN_STATE_CANCELLED
PLANNED = trainer_pb2.RUN_STATE_PLANNED


def test_run_waits_visibly_until_a_worker_comes(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    first, second = stack.create(), stack.create()
    assert stack.get(first).state == PLANNED
    assert stack.get(first).status_detail == "waiting: no worker for cpu is connected"
    stack.start_worker()
    assert stack.wait_for(first, SUCCEEDED, FAILED).state == SUCCEEDED
    assert stack.wait_for(second, SUCCEEDED, FAILED).state == SUCCEEDED


def test_queue_position_is_told(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    stack.start_worker()
    running = stack.create("pause=0.05", steps=1000)
    stack.wait_for(running, RUNNING)
    second, third = stack.create(), stack.create()
    assert stack.get(second).status_detail == "waiting: 1 run ahead"
    assert stack.get(third).status_detail == "waiting: 2 runs ahead"
    cancelled = stack.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=second)).run
    assert cancelled.state == CANCELLED
    assert stack.get(third).status_detail == "waiting: 1 run ahead"
    stack.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=running))
    assert stack.wait_for(third, SUCCEEDED, FAILED).state == SUCCEEDED
    assert not (stack.runs_directory / second).exists()


def test_a_stop_ends_watches_at_once_and_they_go_on_at_the_next_api(
    lonely_trainer: TrainerStack,
) -> None:
    stack = lonely_trainer
    api = ApiProcess(stack)  # with the grace of ten seconds it has by default
    try:
        api.start()
        run_id = stack.create()
        watched = stack.watch(run_id)
        seen = [next(watched)]
        seconds: list[float] = []
        stopping = threading.Thread(target=lambda: seconds.append(api.terminate()))
        stopping.start()
        with pytest.raises(grpc.RpcError) as ended:
            seen.extend(watched)
        stopping.join()
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        assert reason_of(ended.value) == "SERVER_STOPPING"
        assert "watch again from the cursor" in ended.value.details()
        assert seconds[0] < 5
        api.start()
        stack.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id))
        rest = list(stack.watch(run_id, seen[-1].cursor))
        assert rest[-1].state_changed.to == CANCELLED
        assert [event.cursor for event in (*seen, *rest)] == [
            event.cursor for event in stack.watch(run_id)
        ]
    finally:
        api.close()


def test_drained_worker_hands_the_run_to_the_next(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    first = stack.start_worker()
    run_id = stack.create("pause=0.05", steps=60)
    stack.wait_for_steps(run_id, 2)
    assert first.terminate() == 0
    run = stack.get(run_id)
    assert run.state == RESUMING
    assert run.status_detail == (
        "waiting: no worker for cpu is connected (worker worker0@test shut down)"
    )

    stack.start_worker()
    run = stack.wait_for(run_id, SUCCEEDED, FAILED)
    assert run.state == SUCCEEDED
    assert (run.attempt_count, run.worker_name) == (2, "worker1@test")
    assert stack.starts(run_id) == ["resume=False", "resume=True"]
    assert stack.steps_of(run_id) == list(range(1, 61))


def test_sigterm_to_the_whole_process_group_drains_as_well(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    worker = stack.start_worker()
    run_id = stack.create("pause=0.05", steps=60)
    stack.wait_for_steps(run_id, 2)
    os.killpg(worker.process.pid, signal.SIGTERM)
    assert worker.process.wait(20) == 0
    assert stack.get(run_id).state == RESUMING
    stack.start_worker()
    assert stack.wait_for(run_id, SUCCEEDED, FAILED).state == SUCCEEDED
    assert stack.starts(run_id) == ["resume=False", "resume=True"]


def test_second_interrupt_ends_the_worker_and_loses_nothing(lonely_trainer: TrainerStack) -> None:
    """Ctrl-C twice in a terminal: celery's cold shutdown."""
    stack = lonely_trainer
    worker = stack.start_worker(drain_grace_seconds=3)
    run_id = stack.create("stubborn")
    engine = stack.engine_pid(run_id)
    os.killpg(worker.process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert is_alive(engine)
    os.killpg(worker.process.pid, signal.SIGINT)
    worker.process.wait(20)
    wait_until(lambda: not is_alive(engine), "the engine's end")
    stack.start_worker()
    wait_until(lambda: stack.get(run_id).attempt_count == 2, "another attempt", stack.describe)


def test_dead_pool_child_takes_its_engine_along_and_is_replaced(
    lonely_trainer: TrainerStack,
) -> None:
    stack = lonely_trainer
    worker = stack.start_worker()
    run_id = stack.create("pause=0.05", steps=60)
    stack.wait_for_steps(run_id, 1)
    engine = stack.engine_pid(run_id)
    os.kill(worker.pool_child, signal.SIGKILL)
    wait_until(lambda: not is_alive(engine), "the engine's end")
    run = stack.wait_for(run_id, SUCCEEDED, FAILED)
    assert run.state == SUCCEEDED
    assert run.attempt_count == 2


def test_run_that_kills_its_worker_again_and_again_fails(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    worker = stack.start_worker()
    run_id = stack.create("pause=0.05", steps=10_000)
    for attempt in range(1, 4):
        wait_until(lambda n=attempt: stack.get(run_id).attempt_count == n, "attempt", worker.log)
        wait_until(
            lambda n=attempt: len(stack.starts(run_id)) == n if stack.engine_pid(run_id) else False,
            "an engine",
            worker.log,
        )
        os.kill(worker.pool_child, signal.SIGKILL)
    run = stack.wait_for(run_id, FAILED, SUCCEEDED)
    assert run.state == FAILED
    assert "taken up 3 times" in run.error.message
    assert "worker worker0@test was lost" in run.error.message
    assert "fake engine: what it says on stderr" in run.error.stderr_tail


def test_run_that_saves_between_kills_goes_on_to_its_end(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    worker = stack.start_worker()
    run_id = stack.create("pause=0.05 save_every=5", steps=10_000)
    steps = 0
    for attempt in range(1, 6):
        wait_until(lambda n=attempt: stack.get(run_id).attempt_count == n, "attempt", worker.log)
        stack.wait_for_steps(run_id, steps + 7)
        steps = stack.get(run_id).progress.completed_steps
        if attempt < 5:
            os.kill(worker.pool_child, signal.SIGKILL)
    stack.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id))
    assert stack.wait_for(run_id, CANCELLED, FAILED).state == CANCELLED


def test_dead_worker_is_noticed_and_another_finishes_its_run(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    first = stack.start_worker()
    run_id = stack.create("pause=0.05", steps=60)
    stack.wait_for_steps(run_id, 1)
    engine = stack.engine_pid(run_id)
    first.kill()
    wait_until(lambda: not is_alive(engine), "the engine's end")
    stack.start_worker()
    run = stack.wait_for(run_id, SUCCEEDED, FAILED)
    assert run.state == SUCCEEDED
    assert run.worker_name == "worker1@test"


def test_cancelled_run_of_a_dead_worker_ends(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    worker = stack.start_worker()
    run_id = stack.create("hang")
    stack.engine_pid(run_id)
    worker.kill()
    stack.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id))
    assert stack.wait_for(run_id, CANCELLED, FAILED).state == CANCELLED


async def test_duplicate_deliveries_are_dropped(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    stack.start_worker()
    stack.start_worker()
    run_id = stack.create("pause=0.05", steps=40)
    stack.wait_for_steps(run_id, 1)
    queue = RunQueue(stack.shared_settings())
    for _ in range(3):
        await queue.send(run_id, "cpu")
    run = stack.wait_for(run_id, SUCCEEDED, FAILED)
    await queue.send(run_id, "cpu")
    await queue.send("20200101-000000-000bbbb", "cpu")
    queue.close()
    with stack.valkey.client() as client:
        wait_until(lambda: client.llen(queue_name("cpu")) == 0, "an empty queue")
        wait_until(lambda: client.hlen("unacked") == 0, "all messages acknowledged")
    assert (run.state, run.attempt_count) == (SUCCEEDED, 1)
    assert stack.get(run_id).state == SUCCEEDED
    assert len(stack.starts(run_id)) == 1


def test_lost_queue_message_is_sent_again(lonely_trainer: TrainerStack) -> None:
    stack = lonely_trainer
    run_id = stack.create()
    with stack.valkey.client() as client:
        assert client.delete(queue_name("cpu")) == 1
    stack.start_worker()
    assert stack.wait_for(run_id, SUCCEEDED, FAILED).state == SUCCEEDED


def test_run_recorded_but_never_queued_is_queued_by_the_next_api(
    lonely_trainer: TrainerStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kombu.exceptions import OperationalError

    async def fail(*_: object) -> None:
        raise OperationalError("the queue does not answer")

    stack = lonely_trainer
    with monkeypatch.context() as patched:
        patched.setattr(RunQueue, "send", fail)
        spec = a_spec(stack.data)
        run = stack.stub.CreateRun(trainer_pb2.CreateRunRequest(spec=spec)).run
        assert run.state == trainer_pb2.RUN_STATE_PENDING
    stack.start_worker()
    assert stack.wait_for(run.run_id, SUCCEEDED, FAILED).state == SUCCEEDED


def test_worker_that_lost_its_run_kills_its_engine_and_leaves_the_record_alone(
    lonely_trainer: TrainerStack,
) -> None:
    stack = lonely_trainer
    worker = stack.start_worker()
    run_id = stack.create("hang")
    engine = stack.engine_pid(run_id)
    with stack.valkey.client() as client:
        client.set(lease_key(run_id), "another", px=60_000)
        client.hset(run_key(run_id), "owner", "another")
        wait_until(lambda: not is_alive(engine), "the engine's end", worker.log)
        wait_until(lambda: client.hlen("unacked") == 0, "the message's end", worker.log)
        assert client.get(lease_key(run_id)) == b"another"
    assert stack.get(run_id).state == RUNNING
    assert stack.starts(run_id) == ["resume=False"]
