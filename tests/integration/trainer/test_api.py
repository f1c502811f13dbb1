"""The trainer's API as callers see it: good answers, clear errors, nothing half-done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs import keys
from services.trainer.jobs.keys import queue_name
from tests.support.refusals import refused
from tests.support.run_specs import a_spec
from tests.support.trainer_stack import TrainerStack, wait_until

Spec = trainer_pb2.RunSpec
PLANNED = trainer_pb2.RUN_STATE_PLANNED
CANCELLED = trainer_pb2.RUN_STATE_CANCELLED
SUCCEEDED = trainer_pb2.RUN_STATE_SUCCEEDED


def recorded_and_queued(stack: TrainerStack) -> tuple[int, int]:
    with stack.valkey.client() as client:
        return client.zcard(keys.ALL_RUNS), client.llen(queue_name("cpu"))


def test_same_request_id_gives_the_same_run_even_when_calls_race(api: TrainerStack) -> None:
    before, queued = recorded_and_queued(api)
    with ThreadPoolExecutor(16) as pool:
        run_ids = set(pool.map(lambda _: api.create(request_id="race"), range(32)))
    assert len(run_ids) == 1
    after, messages = recorded_and_queued(api)
    assert after == before + 1
    # Calls that race may each send the message; a worker drops all but one.
    assert queued < messages <= queued + 16


def test_same_request_with_a_fresh_plan_is_the_same_request(api: TrainerStack) -> None:
    run_id = api.create(request_id="replanned")
    spec = a_spec(api.data)
    spec.plan.step_seconds *= 1.2
    spec.plan.gpu_memory.total_bytes += 12345
    spec.plan.execution.loss_tile_rows = 8
    spec.display_name = "succeed"
    request = trainer_pb2.CreateRunRequest(request_id="replanned", spec=spec)
    assert api.stub.CreateRun(request).run.run_id == run_id


def test_repeated_request_is_answered_although_its_data_is_gone(api: TrainerStack) -> None:
    folder = api.folder / "data" / "passing"
    folder.mkdir()
    (folder / "a.py").write_text("x = 1\n" * 100)
    request = trainer_pb2.CreateRunRequest(request_id="passing", spec=a_spec(folder))
    run_id = api.stub.CreateRun(request).run.run_id
    (folder / "a.py").unlink()
    assert api.stub.CreateRun(request).run.run_id == run_id


@pytest.mark.parametrize(
    "bend",
    [
        lambda spec: setattr(spec.training, "steps", 5),
        lambda spec: setattr(spec.training, "learning_rate", 1e-3),
        lambda spec: setattr(spec.plan, "tier", 2),
        lambda spec: spec.data.include_globs.append("*.py"),
        lambda spec: setattr(spec.plan.model, "model_id", "another"),
    ],
)
def test_same_request_id_for_another_run_is_a_conflict(
    api: TrainerStack, bend: Callable[[Spec], object]
) -> None:
    api.create(request_id="taken")
    spec = a_spec(api.data)
    bend(spec)
    request = trainer_pb2.CreateRunRequest(request_id="taken", spec=spec)
    code, violations = refused(lambda: api.stub.CreateRun(request))
    assert code == grpc.StatusCode.ALREADY_EXISTS
    assert "use a new request_id" in violations["request_id"]


def test_unknown_run_id_is_not_found_everywhere(api: TrainerStack) -> None:
    stub = api.stub
    for call, request in (
        (stub.GetRun, trainer_pb2.GetRunRequest(run_id="nobody")),
        (stub.CancelRun, trainer_pb2.CancelRunRequest(run_id="nobody")),
        (stub.ResumeRun, trainer_pb2.ResumeRunRequest(run_id="nobody")),
        (lambda r: list(stub.WatchRun(r)), trainer_pb2.WatchRunRequest(run_id="nobody")),
    ):
        code, violations = refused(lambda c=call, r=request: c(r))
        assert code == grpc.StatusCode.NOT_FOUND
        assert violations == {"run_id": "there is no run 'nobody': see ListRuns"}


def test_cancel_of_a_queued_run_is_final_and_repeatable(api: TrainerStack) -> None:
    request = trainer_pb2.CancelRunRequest(run_id=api.create())
    for _ in range(2):
        run = api.stub.CancelRun(request).run
        assert run.state == CANCELLED
        assert run.HasField("finished_at")


def test_only_an_ended_run_is_resumed(api: TrainerStack) -> None:
    run_id = api.create()
    request = trainer_pb2.ResumeRunRequest(run_id=run_id)
    with pytest.raises(grpc.RpcError) as caught:
        api.stub.ResumeRun(request)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert f"run {run_id} is planned" in caught.value.details()

    api.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id))
    run = api.stub.ResumeRun(request).run
    assert run.state == trainer_pb2.RUN_STATE_RESUMING
    assert not run.HasField("finished_at")
    assert run.status_detail == "waiting: no worker for cpu is connected"
    with pytest.raises(grpc.RpcError) as caught:
        api.stub.ResumeRun(request)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_runs_are_listed_page_by_page_newest_first(api: TrainerStack) -> None:
    mine = []
    for _ in range(7):
        mine.append(api.create())
        time.sleep(0.002)
    seen: list[str] = []
    token = ""
    while len(seen) < 7:
        request = trainer_pb2.ListRunsRequest(page_size=3, page_token=token)
        page = api.stub.ListRuns(request)
        seen += [run.run_id for run in page.runs]
        token = page.next_page_token
        assert len(page.runs) == 3
    assert seen[:7] == mine[::-1]

    api.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=mine[3]))
    cancelled = api.stub.ListRuns(trainer_pb2.ListRunsRequest(states=[CANCELLED]))
    assert cancelled.runs[0].run_id == mine[3]
    assert {run.state for run in cancelled.runs} == {CANCELLED}
    assert cancelled.next_page_token == ""


def test_bad_list_requests(api: TrainerStack) -> None:
    for request, field in (
        (trainer_pb2.ListRunsRequest(page_token="made-up"), "page_token"),
        (trainer_pb2.ListRunsRequest(page_size=1001), "page_size"),
        (trainer_pb2.ListRunsRequest(states=[CANCELLED, 0]), "states[1]"),
        (trainer_pb2.ListRunsRequest(states=[77]), "states[0]"),
    ):
        code, violations = refused(lambda r=request: api.stub.ListRuns(r))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert list(violations) == [field]


def test_watch_replays_from_any_cursor(api: TrainerStack) -> None:
    run_id = api.create()
    api.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id))
    events = list(api.watch(run_id))
    assert [event.state_changed.to for event in events] == [
        trainer_pb2.RUN_STATE_PENDING,
        PLANNED,
        CANCELLED,
    ]
    for index, event in enumerate(events):
        assert list(api.watch(run_id, event.cursor)) == events[index + 1 :]
    for unknown in ("1-1", "99999999999999-0", "99999999999999999999-0"):
        assert list(api.watch(run_id, unknown)) == events
    code, violations = refused(lambda: list(api.watch(run_id, "nonsense")))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert list(violations) == ["cursor"]


def test_many_watchers_follow_and_end_with_the_run(api: TrainerStack) -> None:
    run_id = api.create()
    seen: list[list[trainer_pb2.RunEvent]] = []

    def follow() -> None:
        seen.append(list(api.watch(run_id)))

    watchers = [threading.Thread(target=follow) for _ in range(40)]
    for watcher in watchers:
        watcher.start()
    time.sleep(0.3)
    assert seen == []
    api.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id))
    for watcher in watchers:
        watcher.join(timeout=10)
    assert len(seen) == 40
    assert all(events == seen[0] for events in seen)


def test_watchers_that_leave_are_forgotten(api: TrainerStack) -> None:
    run_id = api.create()
    with api.valkey.client() as client:
        for _ in range(60):
            call = api.stub.WatchRun(trainer_pb2.WatchRunRequest(run_id=run_id))
            next(call)
            call.cancel()
        # Each watcher that is left blocks in Redis nearly all the time.
        wait_until(lambda: client.info("clients")["blocked_clients"] == 0, "no watcher")
        time.sleep(1.5)
        assert client.info("clients")["blocked_clients"] == 0


def test_as_many_watchers_as_calls_are_allowed_leave_room_for_the_rest(api: TrainerStack) -> None:
    """A watch holds a connection to Redis while it waits."""
    run_id = api.create()
    request = trainer_pb2.WatchRunRequest(run_id=run_id)
    calls = [api.stub.WatchRun(request) for _ in range(200)]
    for call in calls:
        next(call)
    assert api.create() != run_id
    api.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id))
    ends = {[response.event.cursor for response in call][-1] for call in calls}
    assert len(ends) == 1
