"""Where a streaming step's time goes, by phase and kind of work: `python -m bench.profile`.

torch's profiler around a warm step on the CPU. Self time of every operation is put down to the
phase that it ran in. What is left of a phase's wall time is Python and the dispatch of operations.
On a GPU, `python -m bench.gpu` tells compute from copies. Writes `bench/results/profile.json`.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from bench.machine import describe_machine
from bench.speed import Setting, Subject, plan_for
from bench.speed_steps import Streaming, free_bytes
from services.planner.machine import ComputeDtype, DeviceKind
from services.trainer.engine.attention import register_attention
from services.trainer.engine.executors.streaming import StreamingExecutor

RESULTS = Path(__file__).parent / "results" / "profile.json"
# Methods of the executor, by the phase they are.
PHASES = {
    "_forward_layer": "forward", "_last_layer": "last layer", "_backward_layer": "backward",
}  # fmt: skip
_RANGE = "phase: "
_KINDS = {
    "attention": ("flash_attention", "scaled_dot_product"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::matmul", "aten::linear"),
    "copies": ("aten::copy_", "aten::cat", "aten::clone", "aten::_to_copy", "aten::contiguous"),
}
_OTHER, _REST = "element-wise and others", "Python and dispatch"


def profile_step(subject: Subject, tokens: int, rounds: int) -> dict[str, Any]:
    """Median seconds by phase and kind of some steps, after one that is not counted."""
    device = torch.device("cpu")
    setting = Setting(ComputeDtype.FLOAT32, DeviceKind.CPU, free_bytes(device), rounds)
    plan = plan_for(subject, tokens, setting)
    contender = Streaming(subject.config, plan, device)
    contender.prepare(plan)
    window_bs = torch.randint(0, plan.model.vocabulary_size, (1, tokens))
    contender.step(window_bs)
    found = []
    for _ in range(rounds):
        with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
            contender.step(window_bs)
        found.append(_by_phase(profiler.events()))
    phases = {
        phase: {kind: statistics.median(one[phase][kind] for one in found) for kind in kinds}
        for phase, kinds in found[0].items()
    }
    return {
        "model": subject.key, "tokens": tokens, "rounds": rounds,
        "chunk_tokens": int(plan.execution.streaming.chunk_tokens),
        "seconds": sum(sum(kinds.values()) for kinds in phases.values()), "phases": phases,
    }  # fmt: skip


def name_phases() -> None:
    """Lets the profiler see the phases of every streaming step of this process."""
    for method, phase in PHASES.items():
        function = getattr(StreamingExecutor, method)
        setattr(StreamingExecutor, method, _recorded(function, _RANGE + phase))


def _recorded(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        with record_function(name):
            return function(*arguments, **options)

    return run


def _by_phase(events: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Seconds by phase and kind."""
    ranges = [event for event in events if event.name.startswith(_RANGE)]
    found = {
        phase: dict.fromkeys((*_KINDS, _OTHER, _REST), 0.0) for phase in PHASES.values()
    }  # fmt: skip
    for one in ranges:
        seconds = (one.time_range.end - one.time_range.start) / 1e6
        found[one.name.removeprefix(_RANGE)][_REST] += seconds
    starts = sorted((one.time_range.start, one.time_range.end, one.name) for one in ranges)
    for event in events:
        phase = _phase_at(starts, event)
        if phase:
            seconds = event.self_cpu_time_total / 1e6
            found[phase][_kind(event.name)] += seconds
            found[phase][_REST] -= seconds
    return found


def _phase_at(ranges: Sequence[tuple[float, float, str]], event: Any) -> str:
    """The phase an operation ran in; empty for a phase itself and outside of all."""
    if event.name.startswith(_RANGE):
        return ""
    for start, end, name in ranges:
        if start <= event.time_range.start < end:
            return name.removeprefix(_RANGE)
    return ""


def _kind(name: str) -> str:
    for kind, parts in _KINDS.items():
        if any(part in name for part in parts):
            return kind
    return _OTHER


def main() -> None:
    """Profiles, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama-8x256")
    parser.add_argument("--tokens", default="4096,16384")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    subject = Subject.of(options.model)
    register_attention()
    name_phases()
    cases = []
    for tokens in map(int, options.tokens.split(",")):
        cases.append(profile_step(subject, tokens, options.rounds))
        for phase, kinds in cases[-1]["phases"].items():
            shown = ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in kinds.items())
            print(f"{tokens:6} {phase:9} {shown}", flush=True)
    document = {"machine": describe_machine(), "cases": cases}
    options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
