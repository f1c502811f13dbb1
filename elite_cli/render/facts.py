"""What a plan says beside its memory: time, the whole run, settings, calibration."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from elite.planner.v1 import planner_pb2
from elite_cli.quantities import (
    format_bytes,
    format_count,
    format_duration,
    format_energy,
    format_parameters,
)
from elite_cli.render.names import line_name, store_place
from elite_cli.render.tables import facts_table


def facts(plan: planner_pb2.Plan) -> Table:
    """The facts of a plan, one a row."""
    table = facts_table()
    table.add_row("step time", _step_time(plan))
    if plan.HasField("run"):
        table.add_row("whole run", run_text(plan))
        if stages := _stages(plan):
            table.add_row("", stages)
    if plan.disk_written_bytes_per_step:
        table.add_row("disk writes", _written(plan))
    table.add_row("executor", _executor(plan.execution))
    if stores := _stores(plan.execution):
        table.add_row("stores", stores)
    table.add_row("adapters", escape(_adapters(plan.lora)))
    table.add_row("optimisations", escape(_optimizations(plan)))
    if learned := _calibration(plan.calibration):
        table.add_row("calibration", learned)
    return table


def time_range(seconds: float, low: float, high: float) -> str:
    """ "1 h 30 min (1 h 15 min to 2 h)"; the bounds only where they are known."""
    if not high:
        return format_duration(seconds)
    return f"{format_duration(seconds)} ({format_duration(low)} to {format_duration(high)})"


def _step_time(plan: planner_pb2.Plan) -> str:
    parts = [f"{line_name(line.name)} {format_duration(line.seconds)}" for line in plan.time_lines]
    total = time_range(plan.step_seconds, plan.step_seconds_low, plan.step_seconds_high)
    return escape(f"{total}: {', '.join(parts)}" if parts else total)


def run_text(plan: planner_pb2.Plan) -> str:
    """ "210 steps in 12 d 13 h (10 d 11 h to 16 d 17 h), 118 M tokens, 105 kWh at most"."""
    run = plan.run
    total = time_range(run.seconds, run.seconds_low, run.seconds_high)
    parts = [
        f"{format_count(run.steps)} steps in {total}",
        f"{format_parameters(run.trained_tokens)} tokens",
    ]
    if run.energy_joules:
        parts.append(f"{format_energy(run.energy_joules)} at most")
    return ", ".join(parts)


def _stages(plan: planner_pb2.Plan) -> str:
    """The parts of a run; empty where it has one only."""
    stages = [
        f"{format_count(stage.steps)} steps at tier {stage.tier} ({format_duration(stage.seconds)})"
        for stage in plan.run.stages
    ]
    start = [f"{format_duration(plan.start_seconds)} to start"] if plan.start_seconds else []
    return ", then ".join(start + stages) if len(stages) > 1 else ""


def _written(plan: planner_pb2.Plan) -> str:
    text = f"{format_bytes(plan.disk_written_bytes_per_step)} a window"
    if plan.HasField("run"):
        text += f", {format_bytes(plan.run.disk_written_bytes)} in all"
    return text


def _executor(execution: planner_pb2.Execution) -> str:
    if execution.executor == planner_pb2.EXECUTOR_STREAMING:
        tokens = format_count(execution.streaming.chunk_tokens)
        return f"streaming: one layer at a time, in chunks of {tokens} tokens"
    return "resident: the whole window at once"


def _stores(execution: planner_pb2.Execution) -> str:
    """Where tensors wait between their making and their use."""
    streaming = execution.streaming
    stores = [(_layer_inputs(execution), execution.layer_inputs)]
    if execution.HasField("streaming"):
        stores += [
            ("keys and values", streaming.key_values),
            ("attention outputs", streaming.attention_outputs),
            ("gradients between layers", streaming.hidden_gradients),
        ]
    parts = [f"{name} {store_place(store)}" for name, store in stores if store.placement]
    if execution.weight_placement == planner_pb2.PLACEMENT_HOST:
        parts.append("weights in host memory, streamed")
    return ", ".join(parts)


def _layer_inputs(execution: planner_pb2.Execution) -> str:
    every = execution.layer_input_interval
    return f"inputs of every {every} layers" if every > 1 else "layer inputs"


def _adapters(lora: planner_pb2.Lora) -> str:
    parts = [f"rank {lora.rank} on {', '.join(lora.target_modules) or 'all linears'}"]
    if lora.parameter_count:
        parts.append(f"{format_parameters(lora.parameter_count)} parameters")
    if lora.dtype == planner_pb2.DTYPE_FLOAT32:
        parts.append("in float32")
    if lora.dropout:
        parts.append(f"dropout {lora.dropout:g}")
    return ", ".join(parts)


def _optimizations(plan: planner_pb2.Plan) -> str:
    names = [
        (item.name or item.id) + ("" if item.exact else " (lossy)") for item in plan.optimizations
    ]
    return ", ".join(names) or "none"


def _calibration(learned: planner_pb2.Calibration) -> str:
    """Empty when no run has taught anything."""
    parts = [
        f"{name} calibrated on {runs} run{'s' if runs > 1 else ''} (x {factor:.3f})"
        for name, runs, factor in (
            ("memory", learned.memory_run_count, learned.memory_factor),
            ("time", learned.time_run_count, learned.time_factor),
        )
        if runs
    ]
    return ", ".join(parts)
