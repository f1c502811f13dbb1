"""Predicted against measured seconds of optimiser steps: `python -m bench.time [--fast]`.

Measures this machine's rates, runs the engine's own steps on the CPU, case after case in rounds,
each in a process of its own, as a run is, and measures the rates again after every round: what else
the machine does falls on all of them. Predicts every case from the rates' means, or from a profile.
Writes `bench/results/time.json` and prints the errors.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from google.protobuf import json_format

from bench import step_worker
from bench.machine import describe_machine
from bench.rates import computes_in_16_bits, drift, mean_profile, measured_profile, rates_of
from bench.step_worker import step_process
from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2
from services.planner import responses, search
from services.planner.adapters import EVERY_LINEAR
from services.planner.attention_kernels import best_kernel
from services.planner.evaluation import Evaluation
from services.planner.ladder import Tier
from services.planner.machine import ComputeDtype, Machine
from services.planner.memory import Sizing
from services.planner.models import ModelShape, model_by_id
from services.planner.options import (
    BasePrecision,
    Executor,
    OptimizationSet,
    Place,
    Policy,
    kept_keys_place,
)
from services.planner.profiles import machine_from_profile
from services.planner.tables import table

RESULTS = Path(__file__).parent / "results" / "time.json"
_ROUNDS = 3
_LORA_RANK = 16
_MOST_TARGET_TOKENS = 256
_BF16, _FP32 = ComputeDtype.BFLOAT16, ComputeDtype.FLOAT32


@dataclass(frozen=True, slots=True)
class Case:
    """A model of the catalogue with fewer layers, and how it is trained."""

    model: str
    layers: int
    tokens: int
    dtype: ComputeDtype = _BF16
    checkpointing: bool = True
    streaming: bool = False

    @property
    def set(self) -> str:
        """What is kept for backward, in words."""
        if self.streaming:
            return "streaming, attention outputs kept"
        return "every layer recomputed" if self.checkpointing else "everything kept"

    @property
    def shape(self) -> ModelShape:
        """The model as the planner knows it."""
        return replace(model_by_id(self.model), layer_count=self.layers)

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json, for transformers."""
        rows = {row["id"]: row["config"] for row in table("models")["models"]}
        return {**rows[self.model], "num_hidden_layers": self.layers}

    @property
    def tier(self) -> Tier:
        """The window: a quarter of it are targets, up to a limit."""
        targets = min(_MOST_TARGET_TOKENS, self.tokens // 4)
        return Tier(1, self.tokens - targets, targets, _LORA_RANK)

    def chosen(self, machine: Machine) -> OptimizationSet:
        """The optimisation set."""
        kernel = best_kernel(machine.attention_kernels, self.shape.head_size) or ""
        if self.streaming:
            return OptimizationSet(
                base_precision=BasePrecision.FULL,
                dtype=self.dtype,
                attention_kernel=kernel,
                executor=Executor.STREAMING,
                policy=Policy.SELECTIVE,
                attention_outputs=Place.DEVICE,
                kept_keys=kept_keys_place(
                    Place.DEVICE, Place.DEVICE, self.shape.query_head_count,
                    self.shape.key_value_head_count,
                ),
                adamw_8bit=False,
            )  # fmt: skip
        return OptimizationSet(
            base_precision=BasePrecision.FULL,
            dtype=self.dtype,
            attention_kernel=kernel,
            policy=Policy.EVERY_LAYER if self.checkpointing else Policy.KEEP_ALL,
            adamw_8bit=False,
        )


# Longer ones have fewer layers, so that a step stays below some ten seconds on two cores.
CASES = (
    Case("smollm2-135m", 6, 512),
    Case("smollm2-135m", 6, 1024),
    Case("smollm2-135m", 6, 2048),
    Case("smollm2-135m", 4, 4096),
    Case("smollm2-135m", 2, 8192),
    Case("smollm2-135m", 6, 2048, checkpointing=False),
    Case("smollm2-135m", 6, 1024, _FP32),
    Case("smollm2-135m", 2, 4096, _FP32),
    Case("qwen2.5-0.5b", 2, 512),
    Case("qwen2.5-0.5b", 2, 2048),
    Case("qwen2.5-0.5b", 2, 4096),
    Case("qwen2.5-0.5b", 2, 2048, checkpointing=False),
    Case("qwen2.5-0.5b", 2, 1024, _FP32),
    Case("phi-2", 1, 512),
    Case("phi-2", 1, 1024),
    Case("phi-2", 1, 4096),
    Case("smollm2-135m", 6, 2048, streaming=True),
    Case("smollm2-135m", 2, 8192, streaming=True),
    Case("smollm2-135m", 2, 4096, _FP32, streaming=True),
    Case("qwen2.5-0.5b", 2, 4096, streaming=True),
)
FAST_CASES = (
    Case("smollm2-135m", 1, 64),
    Case("smollm2-135m", 1, 64, _FP32, checkpointing=False),
    Case("smollm2-135m", 1, 128, streaming=True),
)


def cases_for(machine: Machine, cases: Sequence[Case]) -> list[Case]:
    """The cases; in float32 where 16 bits are only emulated, and take many times as long."""
    if computes_in_16_bits(machine.rates):
        return list(cases)
    return list(dict.fromkeys(replace(case, dtype=_FP32) for case in cases))


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of a step, their lines, and the plan that the engine is set up by."""

    low: float
    expected: float
    high: float
    lines: dict[str, float]
    plan: planner_pb2.Plan


def predict(model: ModelShape, tier: Tier, chosen: OptimizationSet, machine: Machine) -> Prediction:
    """What the planner says. The only place that knows how it is asked."""
    candidate = Evaluation(model, machine).one(tier, chosen, Sizing())
    budget = search.budget_for(machine, search.Constraints())
    answer = responses.Answer(model, machine, budget, EVERY_LINEAR)
    cost = candidate.cost
    return Prediction(
        low=float(cost.low),
        expected=float(cost.seconds),
        high=float(cost.high),
        lines={name: float(seconds) for name, seconds in cost.lines.items()},
        plan=responses.plan_message(candidate, answer),
    )


def predict_all(cases: Sequence[Case], machine: Machine) -> list[Prediction]:
    """What the planner says of every case."""
    return [predict(case.shape, case.tier, case.chosen(machine), machine) for case in cases]


@dataclass(slots=True)
class Measured:
    """The timed steps of a case, in the order they ran, and one step by operator."""

    seconds: list[float] = field(default_factory=list)
    cpu_shares: list[float] = field(default_factory=list)
    lines: dict[str, Any] = field(default_factory=dict)


def run_cases(
    cases: Sequence[Case],
    plans: Sequence[planner_pb2.Plan],
    rounds: int,
    after_round: Callable[[], None],
) -> list[Measured]:
    """Rounds of one step of each case, each in a process of its own; the last one by operator."""
    measured = [Measured() for _ in cases]
    for number in range(1, rounds + 1):
        print(f"round {number} of {rounds}", flush=True)
        for case, plan, found in zip(cases, plans, measured, strict=True):
            with step_process(streaming=case.streaming) as process, TemporaryDirectory() as folder:
                timed = process.ask(step_worker.time_step, case.config, plan, Path(folder))
                found.seconds.append(timed.seconds)
                found.cpu_shares.append(timed.cpu_share)
                if number == rounds:
                    vocabulary = case.shape.vocabulary_size
                    found.lines = process.ask(step_worker.operators, vocabulary)
        after_round()
    return measured


def case_row(case: Case, predicted: Prediction, measured: Measured) -> dict[str, Any]:
    """One case as it is written.

    spread: slowest less fastest step, over the median. cpu_share: of all cores, what the steps got;
    well below 1 on a machine that does something else, and then the case says little.
    """
    median = statistics.median(measured.seconds)
    return {
        "model": case.model,
        "layers": case.layers,
        "tokens": case.tokens,
        "dtype": case.dtype.value,
        "set": case.set,
        "predicted_seconds": predicted.expected,
        "low": predicted.low,
        "high": predicted.high,
        "measured_seconds": median,
        "error_percent": 100 * (predicted.expected / median - 1),
        "spread": (max(measured.seconds) - min(measured.seconds)) / median,
        "samples": measured.seconds,
        "cpu_share": statistics.median(measured.cpu_shares),
        "predicted_lines": predicted.lines,
        "measured_lines": measured.lines,
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Errors in percent over all cases."""
    errors = [row["error_percent"] for row in rows]
    inside = [row["low"] <= row["measured_seconds"] <= row["high"] for row in rows]
    return {
        "cases": len(rows),
        "mean_absolute_error_percent": statistics.mean(abs(error) for error in errors),
        "worst_absolute_error_percent": max(abs(error) for error in errors),
        "mean_error_percent": statistics.mean(errors),
        "between_low_and_high": sum(inside),
        "lowest_cpu_share": min(row["cpu_share"] for row in rows),
    }


def show(document: dict[str, Any]) -> None:
    """Prints the table, the drift and the summary."""
    heads = ("low", "expected", "high", "measured", "spread", "CPU")
    print(f"{'case':70} {' '.join(f'{head:>8}' for head in heads)} error")
    for row in document["cases"]:
        name = f"{row['model']}, {row['layers']} layers, {row['tokens']} tokens, {row['dtype']}"
        seconds = (row["low"], row["predicted_seconds"], row["high"], row["measured_seconds"])
        columns = " ".join(f"{value:8.3f}" for value in seconds)
        shares = f"{row['spread']:8.0%} {row['cpu_share']:8.0%}"
        label = f"{name}, {row['set']}"
        print(f"{label:70} {columns} {shares} {row['error_percent']:+.1f} %")
    for when, kinds in document["drift"].items():
        for kind, ratio in kinds.items():
            low, median, high = (f"{ratio[key]:.2f}" for key in ("lowest", "median", "highest"))
            print(f"rates {when} over the profile's: {kind} {median} ({low} to {high})")
    print(json.dumps(document["summary"], indent=1))


def measure(fast: bool, rounds: int, given: Path | None) -> dict[str, Any]:
    """Rates and steps in turns, and what was predicted. given: JSON of a NodeProfile."""
    profiles = [measured_profile(quick=fast)]
    machine = machine_from_profile(profiles[0])
    cases = cases_for(machine, FAST_CASES if fast else CASES)
    measured = run_cases(
        cases, [prediction.plan for prediction in predict_all(cases, machine)], rounds,
        after_round=lambda: profiles.append(measured_profile(quick=fast)),
    )  # fmt: skip
    profile = mean_profile(profiles)
    if given:
        profile = json_format.Parse(given.read_text(), profiler_pb2.NodeProfile())
    predictions = predict_all(cases, machine_from_profile(profile))
    rows = [case_row(*parts) for parts in zip(cases, predictions, measured, strict=True)]
    rates, seen = rates_of(profile), [rates_of(one) for one in profiles]
    return {
        "machine": describe_machine(),
        "profile": rates,
        "measured_rates": seen,
        "drift": {"before, between and after": drift(rates, seen)},
        "summary": summary(rows),
        "cases": rows,
    }


def main() -> None:
    """Measures, predicts, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", type=Path, help="JSON of a NodeProfile to predict from")
    parser.add_argument("--fast", action="store_true", help="three tiny cases, to see it work")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="timed steps of each case")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    document = measure(arguments.fast, arguments.rounds, arguments.profile)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    show(document)


if __name__ == "__main__":
    main()
