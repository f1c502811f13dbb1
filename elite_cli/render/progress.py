"""A run as it happens: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from elite.trainer.v1 import trainer_pb2
from elite_cli.output import error_console
from elite_cli.quantities import format_bytes, format_count, format_duration, format_share
from elite_cli.render.names import run_state_name

# A run of any length prints about this many lines where there is no terminal.
STEP_LINES = 40

_WAITING = (
    trainer_pb2.RUN_STATE_PENDING,
    trainer_pb2.RUN_STATE_PLANNED,
    trainer_pb2.RUN_STATE_RESUMING,
)

_TOLD_STATES = (
    trainer_pb2.RUN_STATE_RUNNING,
    trainer_pb2.RUN_STATE_RESUMING,
    trainer_pb2.RUN_STATE_PAUSED,
)

_PHASES = {
    "prepare_data": "reading and tokenising the data",
    "load_model": "loading the model",
    "evaluate": "measuring the held-out loss",
    "train": "training",
    "save": "saving",
}


class RunProgressView:
    """Shows events on stderr: the bar moves with the steps, everything else is a line."""

    def __init__(self, run: trainer_pb2.Run, console: Console | None = None) -> None:
        self._console = console or error_console()
        steps = run.spec.training.steps
        self._line_every = max(1, steps // STEP_LINES)
        self._last_line = ""
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}"), TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=self._console, disable=not self._console.is_terminal, expand=True,
        )  # fmt: skip
        self._task: TaskID = self._progress.add_task("queued", total=steps, figures="")
        self.show_waiting(run)

    def __enter__(self) -> RunProgressView:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, event: trainer_pb2.RunEvent) -> None:
        """Shows one event."""
        kind = event.WhichOneof("event")
        if kind == "step_completed":
            self._step(event.step_completed)
        elif kind == "phase_started":
            self._phase(event.phase_started.phase)
        elif text := _text_of(event):
            self._line(text)

    def show_waiting(self, run: trainer_pb2.Run) -> None:
        """Says what the run waits for, if it waits."""
        if run.state in _WAITING and run.status_detail:
            self._line(run.status_detail)

    def _phase(self, phase: str) -> None:
        text = _PHASES.get(phase, phase)
        self._progress.update(self._task, description=text)
        if not self._console.is_terminal:
            self._line(text)

    def _step(self, step: trainer_pb2.StepCompleted) -> None:
        figures = step_figures(step)
        self._progress.update(
            self._task, completed=step.step, total=step.total_steps, figures=figures
        )
        is_due = step.step % self._line_every == 0 or step.step == step.total_steps
        if not self._console.is_terminal and is_due:
            self._line(f"step {step.step}/{step.total_steps}: {figures}")

    def _line(self, text: str) -> None:
        if text != self._last_line:
            self._console.print(Text(f"  {text}"), soft_wrap=True)
        self._last_line = text


def step_figures(step: trainer_pb2.StepCompleted) -> str:
    """ "loss 1.623, 158 tok/s, 1.21 of 1.25 GiB"."""
    memory = format_share(step.measured_peak_bytes, step.predicted_peak_bytes)
    return f"loss {step.loss:.3f}, {step.tokens_per_second:.0f} tok/s, {memory}"


def _text_of(event: trainer_pb2.RunEvent) -> str:
    kind = event.WhichOneof("event")
    if kind == "state_changed":
        return _state_text(event.state_changed)
    if kind == "data_prepared":
        return _data_text(event.data_prepared)
    if kind == "model_loaded":
        return _model_text(event.model_loaded)
    if kind == "evaluated":
        when = "before training" if event.evaluated.before_training else "after training"
        count = event.evaluated.window_count
        windows = f"{count} window" + ("" if count == 1 else "s")
        return f"held-out loss {when}: {event.evaluated.loss:.4f} ({windows})"
    if kind == "checkpoint_saved":
        return _checkpoint_text(event.checkpoint_saved)
    if kind == "adapter_saved":
        return f"adapter saved ({format_bytes(event.adapter_saved.bytes)})"
    if kind == "replanned":
        return _replanned_text(event.replanned)
    if kind == "engine_failed":
        return f"the engine failed: {event.engine_failed.message}"
    return ""


def _state_text(change: trainer_pb2.StateChanged) -> str:
    """Waiting is told by `show_waiting`, and the end by the summary."""
    if change.to not in _TOLD_STATES:
        return ""
    detail = f" {change.detail}" if change.detail else ""
    return run_state_name(change.to) + detail


def _data_text(data: trainer_pb2.DataPrepared) -> str:
    skipped = (
        f", {format_count(data.skipped_file_count)} skipped" if data.skipped_file_count else ""
    )
    return (
        f"{format_count(data.file_count)} files{skipped}, {format_count(data.token_count)} tokens: "
        f"{format_count(data.training_window_count)} training and "
        f"{format_count(data.held_out_window_count)} held-out windows "
        f"({format_duration(data.seconds)})"
    )


def _checkpoint_text(saved: trainer_pb2.CheckpointSaved) -> str:
    size = format_bytes(saved.bytes)
    if not saved.stage_count:
        return f"checkpoint at step {saved.step} ({size})"
    done = f"{saved.stages_done} of {saved.stage_count} parts"
    return f"checkpoint in step {saved.step + 1}, {done} done ({size})"


def _replanned_text(new: trainer_pb2.Replanned) -> str:
    before, after = format_bytes(new.device_bytes_before), format_bytes(new.device_bytes_after)
    seconds = (new.step_seconds_before, new.step_seconds_after)
    steps = " -> ".join(map(format_duration, seconds))
    changes = [f"+{name}" for name in new.optimizations_added]
    changes += [f"-{name}" for name in new.optimizations_dropped]
    words = f"; {', '.join(changes)}" if changes else ""
    return f"planned again: {new.detail}; device {before} -> {after}, step {steps}{words}"


def _model_text(model: trainer_pb2.ModelLoaded) -> str:
    share = model.trainable_parameter_count / max(1, model.parameter_count)
    return (
        f"model on {model.device_name}: {format_count(model.trainable_parameter_count)} of "
        f"{format_count(model.parameter_count)} parameters train ({share:.2%}), "
        f"attention {model.attention_kernel}, {format_bytes(model.memory_bytes)} "
        f"({format_duration(model.seconds)})"
    )
