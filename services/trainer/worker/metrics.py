"""What a worker tells Prometheus. Its pool child serves it: the series live where the run does.

No label carries a run id but the one of `elite_trainer_run_info`, which exists only while the run
is on this worker: a dashboard joins on `instance`.
"""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.states import TERMINAL_STATES, State, state_name

# From a toy model's step to the days of a top tier's.
STEP_BUCKETS_SECONDS = (
    0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 259200,
)  # fmt: skip


class WorkerMetrics:
    """The `elite_trainer_...` series of one worker."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._loss = Gauge(
            "elite_trainer_loss", "Training loss of the last step.", registry=registry
        )
        self._tokens = Counter(
            "elite_trainer_tokens", "Tokens trained on, context and target.", registry=registry
        )
        self._steps = Counter("elite_trainer_steps", "Optimiser steps done.", registry=registry)
        self._step_seconds = Histogram(
            "elite_trainer_step_seconds",
            "Seconds of one optimiser step.",
            buckets=STEP_BUCKETS_SECONDS,
            registry=registry,
        )
        self._measured_peak = Gauge(
            "elite_trainer_measured_peak_bytes",
            "Device memory peak of the last step.",
            registry=registry,
        )
        self._predicted_peak = Gauge(
            "elite_trainer_predicted_peak_bytes",
            "Device memory peak the plan predicts.",
            registry=registry,
        )
        self._finished = Counter(
            "elite_trainer_runs_finished", "Runs ended here.", ["state"], registry=registry
        )
        for state in sorted(TERMINAL_STATES):
            self._finished.labels(state_name(state))
        self._info = Gauge(
            "elite_trainer_run_info",
            "1 for the run that is on this worker now.",
            ["run_id", "model", "tier"],
            registry=registry,
        )

    def run_started(self, run: trainer_pb2.Run) -> None:
        """Shows the run and what its plan predicts."""
        plan = run.spec.plan
        model = plan.model.model_id or plan.model.display_name or plan.model.model_type
        self._info.clear()
        self._info.labels(run.run_id, model, str(plan.tier)).set(1)
        self._predicted_peak.set(plan.gpu_memory.total_bytes)

    def step_completed(self, step: trainer_pb2.StepCompleted, tokens: int) -> None:
        """Counts one optimiser step over `tokens` tokens."""
        self._loss.set(step.loss)
        self._tokens.inc(tokens)
        self._steps.inc()
        self._step_seconds.observe(step.step_seconds)
        self._measured_peak.set(step.measured_peak_bytes)

    def run_left(self, state: State | None) -> None:
        """The run is off this worker; `state` if it has ended."""
        self._info.clear()
        if state is not None:
            self._finished.labels(state_name(state)).inc()
