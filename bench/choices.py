"""Is the planner's choice the fastest there is? `python -m bench.choices [--fast]`.

For every case the planner chooses a set and a chunk from this machine's measured rates. Then every
other set and chunk length that fits the same budgets runs a real step: placements, codecs, what is
kept, either executor. Those that come nearest the fastest, and the planner's own, run more steps in
turns. Writes `bench/results/choices.json`: the planner's step over that of the fastest, of the same
round. The fastest is named by half of the rounds and compared in the others, and the other way
about: the luckiest of many is not the fastest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import step_worker
from bench.machine import describe_machine
from bench.rates import computes_in_16_bits, measured_profile, rates_of
from bench.speed import Subject
from bench.speed_worker import ProcessWorker
from bench.step_worker import step_process
from elite.planner.v1 import planner_pb2
from services.planner import responses, search
from services.planner.adapters import EVERY_LINEAR
from services.planner.evaluation import Candidate, Evaluation
from services.planner.grids import choice, grid_of
from services.planner.ladder import Tier
from services.planner.machine import ComputeDtype, Machine
from services.planner.memory import Sizing
from services.planner.options import ACTIVATIONS_4BIT, ACTIVATIONS_8BIT, BasePrecision
from services.planner.profiles import machine_from_profile

RESULTS = Path(__file__).parent / "results" / "choices.json"
# What the planner's choice may take over the fastest.
GOAL = 1.03
_SHORTEST_CHUNK = 256
_FINALISTS, _ROUNDS = 4, 4
_LORA_RANK = 16
_MOST_TARGET_TOKENS = 256
_MEGABYTE = 10**6


@dataclass(frozen=True, slots=True)
class Case:
    """A model and a window on this machine, with less memory than it has.

    codecs: int8 and NF4 layer inputs are allowed too.
    """

    subject: str
    tokens: int
    dtype: ComputeDtype
    memory_bytes: int
    disk_bytes: int = 0
    codecs: bool = False

    @property
    def name(self) -> str:
        """In words."""
        disk = f", {self.disk_bytes / 1e9:.0f} GB of disk" if self.disk_bytes else ""
        memory = f"{self.memory_bytes / 1e6:,.0f} MB of memory"
        return f"{self.subject}, {self.tokens:,} tokens, {self.dtype.value}, {memory}{disk}"

    @property
    def tier(self) -> Tier:
        """The window: a quarter of it are targets, up to a limit."""
        targets = min(_MOST_TARGET_TOKENS, self.tokens // 4)
        return Tier(1, self.tokens - targets, targets, _LORA_RANK)

    @property
    def constraints(self) -> search.Constraints:
        """What the planner is asked under."""
        allowed = frozenset((ACTIVATIONS_8BIT, ACTIVATIONS_4BIT)) if self.codecs else frozenset()
        return search.Constraints(headroom_fraction=0.0, allowed=allowed)

    def in_float32(self) -> Case:
        """The same in twice the memory."""
        return replace(self, dtype=ComputeDtype.FLOAT32, memory_bytes=2 * self.memory_bytes)

    def machine(self, measured: Machine) -> Machine:
        """This machine with the case's budgets. Codecs are offered where 4-bit software is."""
        return replace(
            measured, gpu_safe_bytes=self.memory_bytes, host_safe_bytes=self.memory_bytes,
            disk_free_bytes=self.disk_bytes, process_overhead_bytes=0, dtypes=(self.dtype,),
            has_bitsandbytes=self.codecs,
        )  # fmt: skip


CASES = (
    Case("llama-8x256", 4096, ComputeDtype.FLOAT32, 4000 * _MEGABYTE, 20_000 * _MEGABYTE),
    Case("llama-8x256", 6144, ComputeDtype.FLOAT32, 150 * _MEGABYTE),
    Case("qwen2.5-0.5b:2", 2048, ComputeDtype.BFLOAT16, 430 * _MEGABYTE, 20_000 * _MEGABYTE, True),
)  # fmt: skip
FAST_CASES = (Case("llama-2x64", 512, ComputeDtype.FLOAT32, 30 * _MEGABYTE, 100 * _MEGABYTE),)


@dataclass(slots=True)
class Contestant:
    """One set with one chunk length, and the seconds of its steps."""

    candidate: Candidate
    is_choice: bool = False
    seconds: list[float] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The set and the chunk, in words."""
        chosen = self.candidate.chosen
        if not chosen.streaming:
            return f"resident, {chosen.policy.name.lower().replace('_', ' ')}"
        parts = [f"chunk {self.candidate.memory.chunk_tokens:,}"]
        parts.append(f"inputs on {chosen.layer_inputs.name.lower()}")
        if chosen.layer_input_interval > 1:
            parts.append(f"every {chosen.layer_input_interval}th")
        if chosen.codec:
            parts.append(chosen.codec.name.lower())
        if chosen.attention_outputs:
            parts.append(f"outputs on {chosen.attention_outputs.name.lower()}")
        return ", ".join(parts)

    @property
    def median_seconds(self) -> float:
        """Of the steps so far, the first one left out as soon as there are more."""
        return statistics.median(self.seconds[1:] or self.seconds)


def contestants(case: Case, machine: Machine) -> list[Contestant]:
    """The planner's choice, then everything else that fits. Raises `ValueError` if nothing does."""
    shape = Subject.of(case.subject).shape
    found = search.plan((case.tier,), shape, machine, case.constraints)
    if found.chosen is None:
        raise ValueError(f"{case.name}: nothing fits; {found.verdicts[0].remedy}")
    chosen = Contestant(found.chosen, is_choice=True)
    others = [
        Contestant(candidate)
        for candidate in _everything(case, machine)
        if _fits(candidate, found.budget) and not _same(candidate, found.chosen)
    ]
    return [chosen, *others]


def _everything(case: Case, machine: Machine) -> Iterator[Candidate]:
    """Every set of unquantised weights with every chunk length; resident sets have none."""
    shape = Subject.of(case.subject).shape
    wanted = choice(machine, shape, resident=True, streaming=True, exact_too=False)
    assert wanted is not None, "this machine has a fused kernel and rates"
    evaluation = Evaluation(shape, machine)
    for one in grid_of(wanted).sets:
        if one.base_precision is not BasePrecision.FULL or one.key_value_heads:
            continue
        for chunk in _chunks(case.tokens) if one.streaming else (0,):
            yield evaluation.one(case.tier, one, Sizing(chunk_tokens=chunk))


def _chunks(tokens: int) -> Iterator[int]:
    chunk = min(_SHORTEST_CHUNK, tokens)
    while chunk < tokens:
        yield chunk
        chunk *= 2
    yield tokens


def _fits(candidate: Candidate, budget: search.Budget) -> bool:
    memory = candidate.memory
    on_device = max(memory.device.total_bytes, memory.host.total_bytes)
    return on_device <= budget.gpu_bytes and memory.disk.total_bytes <= max(
        budget.disk_bytes, 0 if _uses_disk(candidate) else memory.disk.total_bytes
    )


def _uses_disk(candidate: Candidate) -> bool:
    return any(place.name == "DISK" for place in candidate.chosen.places)


def _same(one: Candidate, other: Candidate) -> bool:
    chunks = (one.memory.chunk_tokens, other.memory.chunk_tokens)
    return one.chosen == other.chosen and (chunks[0] == chunks[1] or not one.chosen.streaming)


class Runner:
    """Runs single steps of one case's contestants, all on the same weights.

    Either executor has a process of its own, from its first step until `close`.
    """

    def __init__(self, case: Case, machine: Machine, scratch: Path) -> None:
        self._subject, self._machine = Subject.of(case.subject), machine
        self._constraints, self._scratch = case.constraints, scratch
        self._stack = ExitStack()
        self._processes: dict[bool, ProcessWorker] = {}

    def run(self, one: Contestant) -> None:
        """Times a step of the contestant, whose executor and stores are made for it."""
        streaming = one.candidate.chosen.streaming
        if streaming not in self._processes:
            process = step_process(streaming=streaming)
            self._processes[streaming] = self._stack.enter_context(process)
        timed = self._processes[streaming].ask(
            step_worker.time_step, self._subject.config, self._plan(one.candidate), self._scratch
        )
        one.seconds.append(timed.seconds)

    def close(self) -> None:
        """Ends the processes."""
        self._stack.close()

    def _plan(self, candidate: Candidate) -> planner_pb2.Plan:
        shape, budget = self._subject.shape, search.budget_for(self._machine, self._constraints)
        answer = responses.Answer(shape, self._machine, budget, EVERY_LINEAR)
        return responses.plan_message(candidate, answer)


def compare(case: Case, machine: Machine, rounds: int) -> dict[str, Any]:
    """The case as it is written. Raises `ValueError` if nothing fits its budgets."""
    everyone = contestants(case, machine)
    print(f"{case.name}: {len(everyone)} ways that fit", flush=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        closing(Runner(case, machine, Path(scratch))) as runner,
    ):
        for one in everyone:
            runner.run(one)
        others = sorted(everyone[1:], key=lambda one: one.median_seconds)[:_FINALISTS]
        finalists = [everyone[0], *others]
        for number in range(rounds):
            for one in finalists if number % 2 else reversed(finalists):
                runner.run(one)
    best = min(finalists, key=lambda one: one.median_seconds)
    halves = slice(1, None, 2), slice(2, None, 2)
    ratios = (_ratio(finalists, *halves), _ratio(finalists, *reversed(halves)))
    return {
        "case": case.name,
        "ways": len(everyone),
        "choice": finalists[0].label,
        "fastest": best.label,
        "ratio": statistics.mean(ratios),
        "rounds": rounds,
        "finalists": [_row(one) for one in finalists],
        "others": [_row(one) for one in everyone if one not in finalists],
    }


def _ratio(finalists: Sequence[Contestant], naming: slice, comparing: slice) -> float:
    """The choice over the fastest of some rounds, in the others; the first sample is no round's."""
    fastest = min(finalists, key=lambda one: statistics.median(one.seconds[naming]))
    pairs = zip(finalists[0].seconds[comparing], fastest.seconds[comparing], strict=True)
    return statistics.median(chosen / best for chosen, best in pairs)


def _row(one: Contestant) -> dict[str, Any]:
    return {
        "set": one.label,
        "predicted_seconds": float(one.candidate.cost.seconds),
        "median_seconds": one.median_seconds,
        "samples": one.seconds,
        "device_bytes": one.candidate.memory.device.total_bytes,
    }


def goals(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is wanted of every case, and whether it is so."""
    return [
        {"name": f"choice over fastest: {case['case']}", "at_most": GOAL,
         "measured": case["ratio"], "met": case["ratio"] <= GOAL}
        for case in cases
    ]  # fmt: skip


def show(document: dict[str, Any]) -> None:
    """Prints what was chosen and what was fastest."""
    for case, goal in zip(document["cases"], document["goals"], strict=True):
        print(f"{case['case']}: {case['ways']} ways")
        for row in case["finalists"]:
            spread = max(row["samples"]) - min(row["samples"])
            seconds = f"{row['median_seconds']:8.3f} s (spread {spread:.3f})"
            print(f"  {seconds} predicted {row['predicted_seconds']:8.3f}  {row['set']}")
        verdict = "ok" if goal["met"] else "FAIL"
        print(f"  {verdict}: {case['ratio']:.3f} of the fastest, at most {GOAL}")


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="one tiny case, to see that it works")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="of the finalists, 2 or more")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: half of them name the fastest: give 2 or more")
    profile = measured_profile(quick=arguments.fast)
    measured = machine_from_profile(profile)
    chosen = FAST_CASES if arguments.fast else CASES
    if not computes_in_16_bits(measured.rates):
        chosen = tuple(
            case if case.dtype is ComputeDtype.FLOAT32 else case.in_float32() for case in chosen
        )
    cases = [compare(case, case.machine(measured), arguments.rounds) for case in chosen]
    document = {
        "machine": describe_machine(), "profile": rates_of(profile),
        "goals": goals(cases), "cases": cases,
    }  # fmt: skip
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    show(document)


if __name__ == "__main__":
    main()
