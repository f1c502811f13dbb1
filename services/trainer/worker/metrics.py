"""What a worker tells Prometheus. Its pool child serves it: the series live where the run does.

No label carries a run id but the one of `elite_trainer_run_info`, which exists only while the run
is on this worker: a dashboard joins on `instance`. What describes the run or its last step is NaN
while there is none, so that nobody takes an old value for a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import nan

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.states import TERMINAL_STATES, State, state_name
from services.trainer.worker.outcome import StopReason

# From a toy model's step to the days of a top tier's.
STEP_BUCKETS_SECONDS = (
    0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 259200,
)  # fmt: skip
# From an idle worker's look at the queue to a week behind others.
START_BUCKETS_SECONDS = (1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400, 604800)

# As the engine announces them.
PHASES = ("prepare_data", "load_model", "evaluate", "train", "save")
# Of a step, as `StepPhases` names them.
STEP_PHASES = ("forward", "loss", "backward", "optimizer")
# What became of a queue message.
DELIVERIES = ("started", "started_again", "ignored")
# Why a plan is replaced.
_MISSING = ("device_out_of_memory", "host_out_of_memory", "disk_full")

_OF_STEP: Mapping[str, tuple[str, Callable[[trainer_pb2.StepCompleted], float]]] = {
    "loss": ("Training loss of the last step.", lambda step: step.loss),
    "gradient_norm": ("Gradient norm of the last step.", lambda step: step.gradient_norm),
    "learning_rate": ("Learning rate of the last step.", lambda step: step.learning_rate),
    "last_step_seconds": ("Seconds the last step took.", lambda step: step.step_seconds),
    "tokens_per_second": ("Tokens per second of the last step.", lambda s: s.tokens_per_second),
    "completed_steps": ("Steps of the run that are done.", lambda step: step.step),
    "measured_peak_bytes": (
        "Device memory peak of the last step.", lambda step: step.measured_peak_bytes
    ),
    "measured_host_peak_bytes": (
        "Largest resident set since the model was loaded.", lambda step: step.host_peak_bytes
    ),
}  # fmt: skip
_OF_RUN: Mapping[str, tuple[str, Callable[[trainer_pb2.Run], float]]] = {
    "predicted_peak_bytes": (
        "Device memory peak the plan predicts.", lambda run: run.spec.plan.gpu_memory.total_bytes
    ),
    "predicted_host_peak_bytes": (
        "Host memory peak the plan predicts.", lambda run: run.spec.plan.host_memory.total_bytes
    ),
    "predicted_step_seconds": (
        "Seconds the plan predicts for an optimiser step.",
        lambda run: _windows(run) * run.spec.plan.step_seconds,
    ),
    "longest_pause_seconds": (
        "Most seconds the plan foresees between two steps, an evaluation before them included.",
        lambda run: _windows_between_steps(run) * run.spec.plan.step_seconds_high,
    ),
    "context_tokens": ("Context of a window.", lambda run: run.spec.plan.context_tokens),
    "target_tokens": ("Target of a window.", lambda run: run.spec.plan.target_tokens),
    "planned_steps": ("Steps the run shall do.", lambda run: run.spec.training.steps),
    "run_attempts": ("How often the run was taken up.", lambda run: run.attempt_count),
    "run_replans": ("How often the run's plan was replaced.", lambda run: run.replan_count),
}  # fmt: skip
_MOVED: Mapping[str, tuple[str, Callable[[trainer_pb2.StepCompleted], int]]] = {
    "host_to_device_bytes": (
        "Weights and activations copied to the device.", lambda step: step.host_to_device_bytes
    ),
    "device_to_host_bytes": (
        "Activations copied from the device.", lambda step: step.device_to_host_bytes
    ),
    "disk_read_bytes": ("Read from page files.", lambda step: step.disk_read_bytes),
    "disk_written_bytes": ("Written to page files.", lambda step: step.disk_written_bytes),
}  # fmt: skip
_PREFIX = "elite_trainer_"


class WorkerMetrics:
    """The `elite_trainer_...` series of one worker."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        steps, runs = _OF_STEP.items(), _OF_RUN.items()
        self._of_step = _gauges({name: text for name, (text, _) in steps}, registry)
        self._of_run = _gauges({name: text for name, (text, _) in runs}, registry)
        self._progress_at = Gauge(
            f"{_PREFIX}progress_timestamp_seconds",
            "Unix time of the last step, or of the start.",
            registry=registry,
        )
        self._info = Gauge(
            f"{_PREFIX}run_info",
            "1 for the run that is on this worker now.",
            ["run_id", "model", "tier"],
            registry=registry,
        )
        self._phase = Gauge(
            f"{_PREFIX}run_phase", "1 for the phase the run is in.", ["phase"], registry=registry
        )
        self._tokens = Counter(
            f"{_PREFIX}tokens", "Tokens trained on, context and target.", registry=registry
        )
        self._steps = Counter(f"{_PREFIX}steps", "Optimiser steps done.", registry=registry)
        self._moved = {
            name: Counter(_PREFIX + name, text, registry=registry)
            for name, (text, _) in _MOVED.items()
        }
        self._step_phases = Gauge(
            f"{_PREFIX}last_step_phase_seconds",
            "Seconds of the last step by phase.",
            ["phase"],
            registry=registry,
        )
        self._step_seconds = Histogram(
            f"{_PREFIX}step_seconds",
            "Seconds of one optimiser step.",
            buckets=STEP_BUCKETS_SECONDS,
            registry=registry,
        )
        self._submit_to_start = Histogram(
            f"{_PREFIX}submit_to_start_seconds",
            "Seconds from a run's creation to its first start.",
            buckets=START_BUCKETS_SECONDS,
            registry=registry,
        )
        states = [state_name(state) for state in sorted(TERMINAL_STATES)]
        self._finished = _counter("runs_finished", "Runs ended here.", "state", states, registry)
        text = "Queue messages by what came of them."
        self._deliveries = _counter("deliveries", text, "outcome", DELIVERIES, registry)
        text = "Plans replaced, by what was missing."
        self._replans = _counter("replans", text, "cause", _MISSING, registry)
        reasons = [reason.name.lower() for reason in StopReason if reason != StopReason.NONE]
        text = "Engines asked to stop, by reason."
        self._stops = _counter("engine_stops", text, "reason", reasons, registry)
        self._forget_run()

    def run_started(self, run: trainer_pb2.Run) -> None:
        """Shows the run and what its plan predicts."""
        plan = run.spec.plan
        model = plan.model.model_id or plan.model.display_name or plan.model.model_type
        self._forget_run()
        self._info.labels(run.run_id, model, str(plan.tier)).set(1)
        for name, (_, value_of) in _OF_RUN.items():
            self._of_run[name].set(value_of(run))
        self._progress_at.set_to_current_time()
        is_first = run.attempt_count <= 1
        self._deliveries.labels("started" if is_first else "started_again").inc()
        if is_first and run.HasField("started_at"):
            waited = run.started_at.ToMilliseconds() - run.created_at.ToMilliseconds()
            self._submit_to_start.observe(max(0.0, waited / 1000))

    def phase_started(self, phase: str) -> None:
        """Shows the phase; one that is not known as none."""
        for name in PHASES:
            self._phase.labels(name).set(name == phase)

    def step_completed(self, step: trainer_pb2.StepCompleted, tokens: int) -> None:
        """Counts one optimiser step over `tokens` tokens."""
        for name, (_, value_of) in _OF_STEP.items():
            self._of_step[name].set(value_of(step))
        self._tokens.inc(tokens)
        self._steps.inc()
        for name, (_, bytes_of) in _MOVED.items():
            self._moved[name].inc(bytes_of(step))
        for phase in STEP_PHASES if step.HasField("phases") else ():
            seconds = getattr(step.phases, f"{phase}_seconds")
            self._step_phases.labels(phase).set(seconds)
        self._step_seconds.observe(step.step_seconds)
        self._progress_at.set_to_current_time()

    def replanned(self, cause: trainer_pb2.FailureCause) -> None:
        """Counts a plan that was replaced for want of something."""
        name = trainer_pb2.FailureCause.Name(cause).removeprefix("FAILURE_CAUSE_").lower()
        self._replans.labels(name).inc()

    def engine_stopped(self, reason: StopReason) -> None:
        """Counts an engine that was asked to stop."""
        self._stops.labels(reason.name.lower()).inc()

    def delivery_ignored(self) -> None:
        """Counts a queue message that there was nothing to do for."""
        self._deliveries.labels("ignored").inc()

    def run_left(self, state: State | None) -> None:
        """The run is off this worker; `state` if it has ended."""
        self._forget_run()
        if state is not None:
            self._finished.labels(state_name(state)).inc()

    def _forget_run(self) -> None:
        self._info.clear()
        self.phase_started("")
        for phase in STEP_PHASES:
            self._step_phases.labels(phase).set(nan)
        for gauge in (*self._of_step.values(), *self._of_run.values(), self._progress_at):
            gauge.set(nan)


def _gauges(texts: Mapping[str, str], registry: CollectorRegistry) -> dict[str, Gauge]:
    return {name: Gauge(_PREFIX + name, text, registry=registry) for name, text in texts.items()}


def _counter(
    name: str, text: str, label: str, values: Iterable[str], registry: CollectorRegistry
) -> Counter:
    """A counter by one label, all of whose values are there from the start: a first event counts
    as a rise only where there was a zero before it."""
    counter = Counter(_PREFIX + name, text, [label], registry=registry)
    for value in values:
        counter.labels(value)
    return counter


def _windows(run: trainer_pb2.Run) -> int:
    return max(1, run.spec.training.gradient_accumulation_steps)


def _windows_between_steps(run: trainer_pb2.Run) -> int:
    """Of a step, and of an evaluation before it."""
    return _windows(run) + run.spec.training.evaluation_windows
