"""What a worker tells Prometheus about its run, and about what happens to runs."""

from __future__ import annotations

import math
from pathlib import Path

from prometheus_client import CollectorRegistry

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.states import SUCCEEDED
from services.trainer.worker.metrics import PHASES, STEP_PHASES, WorkerMetrics
from services.trainer.worker.outcome import StopReason
from tests.support.run_specs import CONTEXT_TOKENS, TARGET_TOKENS, a_spec


class Scraped:
    """A worker's metrics, and what a scrape finds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = WorkerMetrics(self.registry)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"elite_trainer_{name}", labels)


def a_run(attempt: int = 1, waited_seconds: float = 7.0) -> trainer_pb2.Run:
    run = trainer_pb2.Run(run_id="run-1", spec=a_spec(Path("/data")), attempt_count=attempt)
    run.spec.plan.step_seconds, run.spec.plan.step_seconds_high = 2.0, 3.0
    run.spec.plan.host_memory.total_bytes = 9000
    run.spec.training.gradient_accumulation_steps = 4
    run.spec.training.evaluation_windows = 6
    run.created_at.FromMilliseconds(1_000_000)
    run.started_at.FromMilliseconds(1_000_000 + int(1000 * waited_seconds))
    return run


def test_nothing_is_known_without_a_run() -> None:
    scraped = Scraped()
    for name in (
        "loss",
        "measured_peak_bytes",
        "predicted_peak_bytes",
        "progress_timestamp_seconds",
    ):
        value = scraped(name)
        assert value is not None
        assert math.isnan(value)


def test_a_run_shows_what_its_plan_foresees() -> None:
    scraped = Scraped()
    scraped.metrics.run_started(a_run())
    assert scraped("run_info", run_id="run-1", model="tiny", tier="1") == 1
    assert scraped("predicted_peak_bytes") == 1100
    assert scraped("predicted_host_peak_bytes") == 9000
    assert scraped("predicted_step_seconds") == 4 * 2.0
    assert scraped("longest_pause_seconds") == (4 + 6) * 3.0
    assert scraped("context_tokens") == CONTEXT_TOKENS
    assert scraped("target_tokens") == TARGET_TOKENS
    assert scraped("planned_steps") == 3
    assert (scraped("progress_timestamp_seconds") or 0) > 1e9


def test_a_step_shows_and_is_forgotten_with_its_run() -> None:
    scraped = Scraped()
    scraped.metrics.run_started(a_run())
    step = trainer_pb2.StepCompleted(
        step=2, loss=1.5, gradient_norm=0.5, learning_rate=1e-4, step_seconds=3.0,
        tokens_per_second=20.0, measured_peak_bytes=1000, host_peak_bytes=5000,
        disk_written_bytes=70, disk_read_bytes=60, host_to_device_bytes=50, device_to_host_bytes=40,
        phases=trainer_pb2.StepPhases(
            forward_seconds=0.5, loss_seconds=0.25, backward_seconds=2.0, optimizer_seconds=0.125
        ),
    )  # fmt: skip
    scraped.metrics.step_completed(step, tokens=64)
    scraped.metrics.step_completed(step, tokens=64)
    assert scraped("completed_steps") == 2
    assert scraped("loss") == 1.5
    assert scraped("gradient_norm") == 0.5
    assert scraped("learning_rate") == 1e-4
    assert scraped("last_step_seconds") == 3.0
    assert scraped("tokens_per_second") == 20.0
    assert scraped("measured_host_peak_bytes") == 5000
    assert scraped("disk_written_bytes_total") == 140
    assert scraped("disk_read_bytes_total") == 120
    assert scraped("host_to_device_bytes_total") == 100
    assert scraped("device_to_host_bytes_total") == 80
    phases = {name: scraped("last_step_phase_seconds", phase=name) for name in STEP_PHASES}
    assert phases == {"forward": 0.5, "loss": 0.25, "backward": 2.0, "optimizer": 0.125}
    assert scraped("tokens_total") == 128
    scraped.metrics.run_left(SUCCEEDED)
    assert math.isnan(scraped("loss") or 0)
    assert math.isnan(scraped("predicted_peak_bytes") or 0)
    assert math.isnan(scraped("last_step_phase_seconds", phase="forward") or 0)
    assert scraped("run_info", run_id="run-1", model="tiny", tier="1") is None
    assert scraped("runs_finished_total", state="succeeded") == 1
    assert scraped("steps_total") == 2


def test_the_next_run_does_not_show_the_last_ones_step() -> None:
    scraped = Scraped()
    scraped.metrics.run_started(a_run())
    scraped.metrics.step_completed(trainer_pb2.StepCompleted(measured_peak_bytes=1000), tokens=1)
    scraped.metrics.run_started(a_run())
    assert math.isnan(scraped("measured_peak_bytes") or 0)


def test_only_a_first_start_counts_for_the_time_to_start() -> None:
    scraped = Scraped()
    scraped.metrics.run_started(a_run(waited_seconds=7.0))
    scraped.metrics.run_started(a_run(attempt=2, waited_seconds=900.0))
    assert scraped("submit_to_start_seconds_count") == 1
    assert scraped("submit_to_start_seconds_sum") == 7.0
    assert scraped("submit_to_start_seconds_bucket", le="5.0") == 0
    assert scraped("submit_to_start_seconds_bucket", le="10.0") == 1
    assert scraped("deliveries_total", outcome="started") == 1
    assert scraped("deliveries_total", outcome="started_again") == 1


def test_a_clock_that_was_set_back_gives_no_negative_time() -> None:
    scraped = Scraped()
    scraped.metrics.run_started(a_run(waited_seconds=-60.0))
    assert scraped("submit_to_start_seconds_sum") == 0


def test_one_phase_at_a_time() -> None:
    scraped = Scraped()
    for phase in PHASES:
        scraped.metrics.phase_started(phase)
        assert {name: scraped("run_phase", phase=name) for name in PHASES} == {
            name: float(name == phase) for name in PHASES
        }


def test_what_happens_is_counted_from_zero() -> None:
    scraped = Scraped()
    missing = trainer_pb2.FAILURE_CAUSE_DEVICE_OUT_OF_MEMORY
    assert scraped("replans_total", cause="device_out_of_memory") == 0
    assert scraped("engine_stops_total", reason="stall") == 0
    assert scraped("engine_stops_total", reason="none") is None
    assert scraped("deliveries_total", outcome="ignored") == 0
    scraped.metrics.replanned(missing)
    scraped.metrics.engine_stopped(StopReason.STALL)
    scraped.metrics.delivery_ignored()
    assert scraped("replans_total", cause="device_out_of_memory") == 1
    assert scraped("engine_stops_total", reason="stall") == 1
    assert scraped("deliveries_total", outcome="ignored") == 1
