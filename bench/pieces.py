"""Attention's backward with queries cut into pieces for a CPU's threads: `python -m bench.pieces`.

A streaming step as the engine has it, beside one whose blocks go to torch's kernel whole: seconds
in turns, peak memory, loss and gradient norm of the same steps. Both add up the same terms in
another order. Writes `bench/results/pieces.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import speed, speed_worker
from bench.machine import describe_machine
from services.common.attention_threads import query_pieces
from services.common.engine_process import available_cores
from services.planner.machine import ComputeDtype, DeviceKind

RESULTS = Path(__file__).parent / "results" / "pieces.json"
# KV heads that two threads cannot share evenly, and such that they can.
_MODELS = "smollm2-135m:4,smollm2-360m:2,qwen2.5-0.5b:2"
_TOKENS, _CHUNKS, _ROUNDS = 8192, "1024,2048", 3
WHOLE, PIECES = "whole", "in pieces"
_CUTS: Mapping[str, Callable[[int, int, int], int]] = {WHOLE: lambda *_: 1, PIECES: query_pieces}


def measure(name: str, tokens: int, chunk_tokens: int, rounds: int) -> dict[str, Any]:
    """One case: a model for each way, one step with its memory tracked, then steps in turns."""
    import torch

    from bench import steps
    from services.trainer.engine.memory_tracking import memory_tracker
    from services.trainer.engine.streaming import kernels

    subject = speed.Subject.of(name)
    setting = speed.Setting(
        ComputeDtype.FLOAT32, DeviceKind.CPU, 2**34, rounds, chunk_tokens=chunk_tokens
    )
    plan = speed.plan_for(subject, tokens, setting)
    vocabulary, heads = subject.shape.vocabulary_size, subject.shape.key_value_head_count
    ways: dict[str, dict[str, Any]] = {}
    steppers = {}
    for way, cut in _CUTS.items():
        kernels.query_pieces = cut
        model = steps.load(subject.config, plan)
        with memory_tracker(torch.device("cpu")) as tracker:
            steppers[way] = steps.stepper(model, plan, vocabulary)
            first = steppers[way].run(0)
        ways[way] = {
            "loss": first.loss, "gradient_norm": first.gradient_norm,
            "peak_bytes": tracker.peak_bytes, "samples": [],
        }  # fmt: skip
    for _ in range(rounds):
        for way, cut in _CUTS.items():
            kernels.query_pieces = cut
            ways[way]["samples"].append(steps.timed_step(steppers[way]).seconds)
    for found in ways.values():
        found["seconds"] = statistics.median(found["samples"])
    return {
        "model": subject.key, "tokens": tokens, "chunk_tokens": chunk_tokens,
        "key_value_heads": heads, "pieces": query_pieces(heads, available_cores(), chunk_tokens),
        "ways": ways,
    }  # fmt: skip


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=_MODELS, help=f"by commas; default {_MODELS}")
    parser.add_argument("--tokens", type=int, default=_TOKENS)
    parser.add_argument("--chunks", default=_CHUNKS, help=f"by commas; default {_CHUNKS}")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    speed_worker.start(speed_worker.STREAMING)
    cases = []
    for model in options.model.split(","):
        for chunk_tokens in map(int, options.chunks.split(",")):
            case = measure(model, options.tokens, chunk_tokens, options.rounds)
            cases.append(case)
            seconds = {way: f"{one['seconds']:.2f} s" for way, one in case["ways"].items()}
            print(f"{model:20} {chunk_tokens:6} tokens a chunk, cut in {case['pieces']}: {seconds}")
    document = {
        "machine": describe_machine(), "threads": available_cores(), "rounds": options.rounds,
        "cases": cases,
    }  # fmt: skip
    options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
