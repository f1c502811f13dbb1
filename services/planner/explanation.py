"""How the figures of a plan came about: its formulas, run on numbers that remember."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from services.planner import cost, memory
from services.planner.arithmetic import Number
from services.planner.evaluation import Candidate, Evaluation
from services.planner.machine import Machine
from services.planner.memory import Sizing, memory_phases
from services.planner.terms import set_terms, tier_terms, traced
from services.planner.tracing import Traced, plain


@dataclass(frozen=True, slots=True)
class Derivation:
    """One line: the formula by names, with its numbers, and what it comes to."""

    budget: str
    line: str
    formula_id: str
    expression: str
    with_numbers: str
    value: float


def derivations(
    candidate: Candidate, evaluation: Evaluation, machine: Machine
) -> tuple[Derivation, ...]:
    """Every line of the candidate's peak phases and of its step time, before calibration."""
    model, time = evaluation.terms(candidate.chosen)
    streaming = candidate.chosen.streaming
    tier = traced(tier_terms([candidate.tier], evaluation.rank))
    sets, shape = set_terms([candidate.chosen]), traced(model)
    chunk = Traced(candidate.memory.chunk_tokens, "C") if streaming else tier.tokens
    sizing = Sizing(
        chunk_tokens=chunk,  # type: ignore[arg-type]
        tile_rows=Traced(candidate.memory.loss_tile_rows, "T"),  # type: ignore[arg-type]
    )
    phases = memory_phases(shape, tier, sets, machine, streaming=streaming, sizing=sizing)
    step = cost.step_cost(
        shape, tier, sets, traced(time), streaming=streaming,
        chunk_tokens=chunk, tile_rows=phases.tile_rows,
    )  # fmt: skip
    taken = candidate.memory
    peaks = {
        "gpu": phases.device[taken.device.peak_phase],
        "host": phases.host[taken.host.peak_phase],
        "disk": phases.disk[taken.disk.peak_phase],
    }
    return (
        *(
            one
            for budget, lines in peaks.items()
            for one in _lines(budget, lines, memory.formula_ids(budget, streaming=streaming))
        ),
        *_lines("time", step.lines, cost.FORMULAS),
    )


def _lines(
    budget: str, lines: Mapping[str, Number], formulas: Mapping[str, str]
) -> Iterator[Derivation]:
    for name, number in lines.items():
        value = float(number)
        if value:
            shown = number if isinstance(number, Traced) else Traced(number, plain(number))
            yield Derivation(budget, name, formulas[name], shown.expression, shown.numbers, value)
