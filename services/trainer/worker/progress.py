"""What an engine's events add up to."""

from __future__ import annotations

import statistics
import time

from elite.trainer.v1 import trainer_pb2
from services.common.tracing import current_traceparent, record_span
from services.trainer.worker.metrics import WorkerMetrics


class ProgressTracker:
    """Progress and measurements of one attempt, updated event by event."""

    def __init__(self, run: trainer_pb2.Run, metrics: WorkerMetrics) -> None:
        training, plan = run.spec.training, run.spec.plan
        windows = max(1, training.gradient_accumulation_steps)
        self._step_tokens = windows * (plan.context_tokens + plan.target_tokens)
        self._metrics = metrics
        self._step_seconds: list[float] = []
        self.progress = trainer_pb2.RunProgress()
        self.progress.CopyFrom(run.progress)
        self.device_name = ""
        self.device_peak_bytes = 0
        self.host_peak_bytes = 0
        self.adapter_path = ""
        self.failure: trainer_pb2.EngineFailed | None = None

    @property
    def median_step_seconds(self) -> float:
        """Of all steps but the first, which warms up; 0 when there are none."""
        return statistics.median(self._step_seconds[1:] or self._step_seconds or [0.0])

    def observe(self, event: trainer_pb2.RunEvent) -> None:
        """Takes one event in."""
        match event.WhichOneof("event"):
            case "step_completed":
                self._step(event.step_completed)
            case "evaluated" if event.evaluated.before_training:
                self.progress.held_out_loss_before = event.evaluated.loss
            case "evaluated":
                self.progress.held_out_loss_after = event.evaluated.loss
            case "model_loaded":
                self.device_name = event.model_loaded.device_name
            case "adapter_saved":
                self.adapter_path = event.adapter_saved.path
            case "engine_failed":
                self.failure = event.engine_failed
            case "phase_started":
                self._metrics.phase_started(event.phase_started.phase)
            case "replanned":
                self._metrics.replanned(event.replanned.cause)

    def _step(self, step: trainer_pb2.StepCompleted) -> None:
        progress = self.progress
        progress.completed_steps = step.step
        progress.loss = step.loss
        progress.step_seconds = step.step_seconds
        progress.tokens_per_second = step.tokens_per_second
        progress.measured_peak_bytes = max(progress.measured_peak_bytes, step.measured_peak_bytes)
        progress.step_phases.CopyFrom(step.phases)
        if step.predicted_peak_bytes:
            progress.predicted_peak_bytes = step.predicted_peak_bytes
        self._step_seconds.append(step.step_seconds)
        record_span(
            "step", current_traceparent(), time.time(), step.step_seconds,
            step=step.step, loss=step.loss, peak_bytes=step.measured_peak_bytes,
        )  # fmt: skip
        self.device_peak_bytes = max(self.device_peak_bytes, step.measured_peak_bytes)
        self.host_peak_bytes = max(self.host_peak_bytes, step.host_peak_bytes)
        self._metrics.step_completed(step, self._step_tokens)
