"""What events add up to, what the planner is told, and what lies in the run's folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import json_format
from prometheus_client import CollectorRegistry

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from services.trainer.worker import identity
from services.trainer.worker.metrics import WorkerMetrics
from services.trainer.worker.outcome_report import outcome_request
from services.trainer.worker.progress import ProgressTracker
from services.trainer.worker.run_directory import RunDirectory
from tests.support.run_specs import CONTEXT_TOKENS, TARGET_TOKENS, a_plan, a_spec


def a_run(accumulation: int = 0) -> trainer_pb2.Run:
    run = trainer_pb2.Run(run_id="run", spec=a_spec(Path("/data")), attempt_count=1)
    run.spec.training.gradient_accumulation_steps = accumulation
    return run


def a_step(number: int, seconds: float, peak: int) -> trainer_pb2.RunEvent:
    step = trainer_pb2.StepCompleted(
        step=number, loss=2.0, step_seconds=seconds, measured_peak_bytes=peak, host_peak_bytes=peak,
        phases=trainer_pb2.StepPhases(backward_seconds=seconds / 2),
    )  # fmt: skip
    return trainer_pb2.RunEvent(step_completed=step)


def test_first_step_warms_up_and_peaks_are_the_largest() -> None:
    registry = CollectorRegistry()
    tracker = ProgressTracker(a_run(accumulation=4), WorkerMetrics(registry))
    assert tracker.median_step_seconds == 0
    for number, (seconds, peak) in enumerate([(9.0, 5), (1.0, 7), (2.0, 6), (3.0, 6)], 1):
        tracker.observe(a_step(number, seconds, peak))
    assert tracker.median_step_seconds == 2.0
    assert (tracker.device_peak_bytes, tracker.progress.measured_peak_bytes) == (7, 7)
    assert tracker.progress.completed_steps == 4
    assert tracker.progress.step_phases.backward_seconds == 1.5
    tokens = registry.get_sample_value("elite_trainer_tokens_total")
    assert tokens == 4 * 4 * (CONTEXT_TOKENS + TARGET_TOKENS)


def test_only_step_counts_when_there_is_no_other() -> None:
    tracker = ProgressTracker(a_run(), WorkerMetrics(CollectorRegistry()))
    tracker.observe(a_step(1, 9.0, 5))
    assert tracker.median_step_seconds == 9.0


def test_resumed_run_keeps_what_the_earlier_attempt_found() -> None:
    run = a_run()
    run.progress.held_out_loss_before = 3.0
    run.progress.completed_steps = 5
    tracker = ProgressTracker(run, WorkerMetrics(CollectorRegistry()))
    tracker.observe(trainer_pb2.RunEvent(evaluated=trainer_pb2.Evaluated(loss=1.0)))
    assert tracker.progress.held_out_loss_before == 3.0
    assert tracker.progress.held_out_loss_after == 1.0
    assert tracker.progress.completed_steps == 5


def test_out_of_memory_is_reported_as_such() -> None:
    tracker = ProgressTracker(a_run(), WorkerMetrics(CollectorRegistry()))
    tracker.observe(a_step(1, 1.0, 5))
    assert not outcome_request(a_run(), tracker).out_of_memory
    failed = trainer_pb2.EngineFailed(cause=trainer_pb2.FAILURE_CAUSE_DEVICE_OUT_OF_MEMORY)
    tracker.observe(trainer_pb2.RunEvent(engine_failed=failed))
    assert outcome_request(a_run(), tracker).out_of_memory


def test_step_time_is_told_per_window_as_the_plan_has_it() -> None:
    for accumulation, per_window in ((0, 6.0), (1, 6.0), (3, 2.0)):
        run = a_run(accumulation)
        tracker = ProgressTracker(run, WorkerMetrics(CollectorRegistry()))
        tracker.observe(a_step(1, 6.0, 5))
        assert outcome_request(run, tracker).measured_step_seconds == per_window


def test_phases_and_new_plans_reach_the_metrics() -> None:
    registry = CollectorRegistry()
    tracker = ProgressTracker(a_run(), WorkerMetrics(registry))
    tracker.observe(trainer_pb2.RunEvent(phase_started=trainer_pb2.PhaseStarted(phase="train")))
    cause = trainer_pb2.FAILURE_CAUSE_HOST_OUT_OF_MEMORY
    tracker.observe(trainer_pb2.RunEvent(replanned=trainer_pb2.Replanned(cause=cause)))
    assert registry.get_sample_value("elite_trainer_run_phase", {"phase": "train"}) == 1
    replans = {"cause": "host_out_of_memory"}
    assert registry.get_sample_value("elite_trainer_replans_total", replans) == 1


def test_run_directory_holds_plan_and_spec_as_the_engine_reads_them(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, "run")
    run = a_run()
    offset = directory.prepare(run)
    assert offset == directory.log_path.stat().st_size
    plan = json_format.Parse(directory.plan_path.read_text(), planner_pb2.Plan())
    assert plan == a_plan()
    spec = json.loads(directory.spec_path.read_text())
    assert spec["data"] == {"path": "/data"}
    assert "plan" not in spec
    assert sorted(path.name for path in directory.path.iterdir()) == [
        ".fencing-lock",
        ".fencing-token",
        "engine.log",
        "plan.json",
        "spec.json",
    ]
    assert "--resume" not in directory.engine_arguments()
    (directory.path / "checkpoints" / "step-00000001").mkdir(parents=True)
    resumption = ["--fencing-token", "1", "--told-steps", "0", "--resume"]
    assert directory.engine_arguments()[-5:] == resumption
    directory.prepare(run)
    assert directory.log_path.read_text().count("--- attempt 1") == 2


def test_dead_sibling_is_told_from_the_living_and_from_strangers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    instance = identity.lease_owner().partition(":")[0]
    assert identity.lease_owner() == f"{instance}:{os.getpid()}"
    assert not identity.is_dead_sibling(identity.lease_owner())
    assert identity.is_dead_sibling(f"{instance}:{ended.pid}")
    assert not identity.is_dead_sibling(f"another:{ended.pid}")
    assert not identity.is_dead_sibling("")
    monkeypatch.setattr(identity, "_names", {})
    identity.set_worker_name("gpu-0@host")
    assert identity.worker_name() == "gpu-0@host"
