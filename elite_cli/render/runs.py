"""Runs for people: the list, one run, and how one ended."""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from elite.trainer.v1 import trainer_pb2
from elite_cli.quantities import format_bytes, format_count, format_duration
from elite_cli.render.names import failure_cause_name, run_state_name
from elite_cli.render.tables import facts_table, new_table

_STATE_STYLES = {
    trainer_pb2.RUN_STATE_SUCCEEDED: "green",
    trainer_pb2.RUN_STATE_FAILED: "red",
    trainer_pb2.RUN_STATE_RUNNING: "cyan",
}


def render_runs(console: Console, response: trainer_pb2.ListRunsResponse) -> None:
    """Prints one page of runs, newest first."""
    if not response.runs:
        console.print("No runs.")
        return
    table = new_table()
    table.add_column("run", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("model", overflow="fold")
    for heading in ("tier", "steps", "loss", "age"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in response.runs:
        progress = run.progress
        table.add_row(
            run.run_id, _state(run.state), escape(_model_name(run)), str(run.spec.plan.tier),
            f"{progress.completed_steps}/{progress.total_steps or run.spec.training.steps}",
            f"{progress.loss:.3f}" if progress.completed_steps else "",
            _age(run),
        )  # fmt: skip
    console.print(table)
    for run in response.runs:
        if run.state == trainer_pb2.RUN_STATE_UNSPECIFIED:
            console.print(escape(run.status_detail))
    if response.next_page_token:
        console.print(f"\nmore: elite runs list --page-token {response.next_page_token}")


def render_run(console: Console, run: trainer_pb2.Run) -> None:
    """Prints everything about one run."""
    table = facts_table()
    table.add_row("run", run.run_id)
    table.add_row("state", _state(run.state))
    if run.status_detail:
        table.add_row("", escape(run.status_detail))
    if run.spec.display_name:
        table.add_row("name", escape(run.spec.display_name))
    table.add_row("data", escape(run.spec.data.path))
    table.add_row("created", _when(run.created_at.ToSeconds()))
    if run.worker_name:
        table.add_row("worker", f"{escape(run.worker_name)}, attempt {run.attempt_count}")
    _add_figures(table, run)
    if run.progress.step_phases.ListFields():
        table.add_row("last step", _phases(run.progress.step_phases))
    console.print(table)
    _render_error(console, run)


def render_summary(console: Console, run: trainer_pb2.Run) -> None:
    """Prints how a run ended and what came out of it."""
    seconds = run.finished_at.ToSeconds() - run.started_at.ToSeconds()
    took = f" in {format_duration(seconds)}" if run.HasField("started_at") and seconds > 0 else ""
    console.print(f"Run {run.run_id} {_state(run.state)}{took}")
    table = facts_table()
    _add_figures(table, run)
    console.print(table)
    _render_error(console, run)


def _add_figures(table: Table, run: trainer_pb2.Run) -> None:
    plan, progress = run.spec.plan, run.progress
    table.add_row("model", escape(_model_name(run)))
    table.add_row(
        "tier",
        f"{plan.tier}: {format_count(plan.context_tokens)} + "
        f"{format_count(plan.target_tokens)} tokens, rank {plan.lora.rank}",
    )
    total = progress.total_steps or run.spec.training.steps
    loss = f", loss {progress.loss:.4f} at the last" if progress.completed_steps else ""
    table.add_row("steps", f"{progress.completed_steps} of {total}{loss}")
    if progress.HasField("held_out_loss_before"):
        table.add_row("held-out loss", _held_out(progress))
    if progress.completed_steps:
        # The plan's step is of one window.
        planned = plan.step_seconds * max(1, run.spec.training.gradient_accumulation_steps)
        table.add_row(
            "step time",
            f"{format_duration(progress.step_seconds)}, planned "
            f"{format_duration(planned)}; {progress.tokens_per_second:.0f} tokens/s",
        )
    if progress.measured_peak_bytes:
        table.add_row("memory", _memory(progress))
    if run.replan_count:
        table.add_row("planned again", f"{run.replan_count} times")
    if run.adapter_path:
        table.add_row("adapter", escape(run.adapter_path))


def _held_out(progress: trainer_pb2.RunProgress) -> str:
    before = progress.held_out_loss_before
    if not progress.HasField("held_out_loss_after"):
        return f"{before:.4f} before training"
    after = progress.held_out_loss_after
    change = f" ({after / before - 1:+.1%})" if before else ""
    return f"{before:.4f} before, {after:.4f} after{change}"


def _memory(progress: trainer_pb2.RunProgress) -> str:
    measured, predicted = progress.measured_peak_bytes, progress.predicted_peak_bytes
    text = f"{format_bytes(measured)} measured at the peak"
    if predicted:
        text += f", {format_bytes(predicted)} predicted ({predicted / measured - 1:+.1%})"
    return text


def _phases(phases: trainer_pb2.StepPhases) -> str:
    """ "forward 12 s, loss 1 s, backward 30 s, optimizer 0.1 s"."""
    parts = [
        f"{field.name.removesuffix('_seconds')} {format_duration(seconds)}"
        for field, seconds in phases.ListFields()
    ]
    return ", ".join(parts)


def _render_error(console: Console, run: trainer_pb2.Run) -> None:
    if not run.HasField("error"):
        return
    cause = failure_cause_name(run.error.cause)
    console.print(f"\n[red]{cause}[/red]: {escape(run.error.message)}")
    if run.error.stderr_tail:
        console.print("last lines of the engine:")
        console.print(escape(run.error.stderr_tail.rstrip()), soft_wrap=True)


def _model_name(run: trainer_pb2.Run) -> str:
    model = run.spec.plan.model
    return model.display_name or model.model_id or run.spec.model_path or model.model_type


def _age(run: trainer_pb2.Run) -> str:
    if not run.HasField("created_at"):
        return ""
    return format_duration(max(0.0, time.time() - run.created_at.ToSeconds()))


def _state(state: trainer_pb2.RunState) -> str:
    if state == trainer_pb2.RUN_STATE_UNSPECIFIED:
        return "[red]unreadable[/red]"
    style = _STATE_STYLES.get(state, "bold")
    return f"[{style}]{run_state_name(state)}[/{style}]"


def _when(seconds_since_epoch: int) -> str:
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds_since_epoch))
    return f"{moment} ({format_duration(max(0.0, time.time() - seconds_since_epoch))} ago)"
