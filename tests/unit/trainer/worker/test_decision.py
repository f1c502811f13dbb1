"""What becomes of a run before its engine starts, and after it has ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.states import CANCELLED, FAILED, PAUSED, RESUMING, SUCCEEDED, State
from services.trainer.jobs.store import Transition
from services.trainer.settings import TrainerSettings
from services.trainer.worker import decision as module
from services.trainer.worker.decision import Decision
from services.trainer.worker.event_relay import EventRelay
from services.trainer.worker.metrics import WorkerMetrics
from services.trainer.worker.outcome import EngineEnd, StopReason
from services.trainer.worker.progress import ProgressTracker
from services.trainer.worker.replanning import Replanner
from services.trainer.worker.settings import TrainerWorkerSettings
from services.trainer.worker.watchdog import Watchdog
from tests.support.run_specs import a_spec

DEVICE = trainer_pb2.FAILURE_CAUSE_DEVICE_OUT_OF_MEMORY
HOST = trainer_pb2.FAILURE_CAUSE_HOST_OUT_OF_MEMORY
DISK = trainer_pb2.FAILURE_CAUSE_DISK_FULL
BIG = 1000


def a_run(folder: Path) -> trainer_pb2.Run:
    """Its plan takes `BIG` bytes of device, host and disk."""
    run = trainer_pb2.Run(run_id="run", spec=a_spec(folder))
    run.spec.planned_by.SetInParent()
    plan = run.spec.plan
    for estimate in (plan.gpu_memory, plan.host_memory, plan.disk):
        estimate.total_bytes = BIG
    return run


def a_decision(run: trainer_pb2.Run) -> Decision:
    settings = TrainerWorkerSettings(
        trainer=TrainerSettings(data_roots=(Path(run.spec.data.path),)),
        planner_address="planner", profiler_address="profiler", maximum_replans=2,
    )  # fmt: skip
    tracker = ProgressTracker(run, WorkerMetrics(CollectorRegistry()))
    relay = EventRelay(None, 100)  # type: ignore[arg-type]
    return Decision(run, "owner", settings, tracker, relay, Watchdog(run, 60))


def the_planner_says(
    monkeypatch: pytest.MonkeyPatch, chosen: planner_pb2.Plan | None, **budget: int
) -> None:
    everything = {"gpu_safe_bytes": BIG, "host_safe_bytes": BIG, "disk_bytes": BIG}
    response = planner_pb2.PlanResponse(
        chosen=chosen, budget=planner_pb2.Budget(**{**everything, **budget})
    )
    monkeypatch.setattr(Replanner, "_question", lambda *_: planner_pb2.PlanRequest())
    monkeypatch.setattr(Replanner, "_ask", lambda *_: response)


def error_of(step: Transition) -> trainer_pb2.RunError:
    assert step.target == FAILED
    error = step.changes["error"]
    assert isinstance(error, bytes)
    return trainer_pb2.RunError.FromString(error)


LACKS = [("gpu_safe_bytes", DEVICE), ("host_safe_bytes", HOST), ("disk_bytes", DISK)]


@pytest.mark.parametrize(("resource", "cause"), LACKS)
async def test_a_run_without_another_plan_fails_for_what_is_missing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    resource: str,
    cause: trainer_pb2.FailureCause,
) -> None:
    the_planner_says(monkeypatch, None, **{resource: BIG - 1})
    step = await a_decision(a_run(tmp_path)).before()
    assert step is not None
    assert error_of(step).cause == cause


@pytest.mark.parametrize(("resource", "cause"), LACKS)
async def test_a_plan_that_does_not_fit_is_not_started_when_replans_are_used_up(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    resource: str,
    cause: trainer_pb2.FailureCause,
) -> None:
    run = a_run(tmp_path)
    the_planner_says(monkeypatch, run.spec.plan, **{resource: BIG - 1})
    for replan_count, target in ((0, RESUMING), (1, RESUMING), (2, FAILED)):
        run.replan_count = replan_count
        step = await a_decision(run).before()
        assert step is not None
        assert step.target == target
    error = error_of(step)
    assert error.cause == cause
    assert "are free; planned again 2 times already" in error.message


async def test_a_plan_that_fits_starts_however_often_it_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path)
    run.replan_count = 2
    the_planner_says(monkeypatch, run.spec.plan)
    assert await a_decision(run).before() is None


@pytest.mark.parametrize(("replan_count", "reports_before"), [(0, 1), (2, 0)])
async def test_what_a_run_took_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replan_count: int, reports_before: int
) -> None:
    """A run out of memory tells it before it plans again, and not once more when it fails."""
    reports: list[object] = []

    async def report(*arguments: object) -> None:
        reports.append(arguments)

    monkeypatch.setattr(module, "report_outcome", report)
    the_planner_says(monkeypatch, None)
    run = a_run(tmp_path)
    run.replan_count = replan_count
    decision = a_decision(run)
    failure = trainer_pb2.EngineFailed(cause=DEVICE, message="out of memory")
    step = await decision.after(EngineEnd(1, failure, "", 0, ""), StopReason.NONE)
    assert error_of(step).cause == DEVICE
    assert len(reports) == reports_before
    await decision.report()
    assert len(reports) == 1


@pytest.mark.parametrize(
    ("wishes", "step", "expected"),
    [
        ({"cancel_requested", "pause_requested"}, PAUSED, CANCELLED),
        ({"cancel_requested", "pause_requested"}, RESUMING, CANCELLED),
        ({"cancel_requested"}, RESUMING, CANCELLED),
        ({"pause_requested"}, RESUMING, PAUSED),
        ({"pause_requested"}, PAUSED, PAUSED),
        (set(), RESUMING, RESUMING),
        ({"cancel_requested"}, SUCCEEDED, SUCCEEDED),
        ({"cancel_requested", "pause_requested"}, FAILED, FAILED),
    ],
)
def test_cancel_goes_before_pause_and_pause_before_going_on(
    wishes: set[str], step: State, expected: State
) -> None:
    run = trainer_pb2.Run(**dict.fromkeys(wishes, True))
    taken = Decision.as_wished(run, Transition(step, "", {"replan_count": 1}))
    assert taken.target == expected
    assert taken.changes["replan_count"] == 1
    if (step, expected) == (RESUMING, PAUSED):
        assert taken.changes["pause_requested"] == "0"
