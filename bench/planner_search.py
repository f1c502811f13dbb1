"""The search alone, as a function: how its time grows with the number of tiers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from services.planner import search
from services.planner.budgets import Constraints
from services.planner.ladder import Tier, load_ladder
from services.planner.machine import hypothetical_machine
from services.planner.models import model_by_id

# How many tiers for each tier of the house.
COPIES = (1, 10, 100)
WARM_UP_RUNS = 5


def search_seconds(model_id: str, gpu_id: str, host_bytes: int, runs: int) -> dict[str, Any]:
    """Quantiles by ladder; growth: the time over that of the ladder before.

    The ladders take turns. Processor time, of all threads, leaves out what other processes take.
    """
    ladders = [ladder_of(copies) for copies in COPIES]
    plans = [planner_of(ladder, model_id, gpu_id, host_bytes) for ladder in ladders]
    samples: list[list[tuple[float, float]]] = [[] for _ in ladders]
    for run in range(WARM_UP_RUNS + runs):
        for plan, taken in zip(plans, samples, strict=True):
            started, cpu_started = time.perf_counter(), time.process_time()
            plan()
            cpu_seconds, seconds = time.process_time() - cpu_started, time.perf_counter() - started
            if run >= WARM_UP_RUNS:
                taken.append((cpu_seconds, seconds))
    rows: list[dict[str, float]] = []
    for ladder, taken in zip(ladders, samples, strict=True):
        rows.append({"tiers": len(ladder), **_quantiles(taken)})
        if len(rows) > 1:
            rows[-1]["growth"] = rows[-1]["cpu_p50_seconds"] / rows[-2]["cpu_p50_seconds"]
    return {"runs": runs, "ladders": rows}


def _quantiles(samples: list[tuple[float, float]]) -> dict[str, float]:
    cpu, wall = zip(*samples, strict=True)
    return {
        "cpu_p50_seconds": statistics.median(cpu),
        "cpu_p90_seconds": statistics.quantiles(cpu, n=10)[8],
        "p50_seconds": statistics.median(wall),
        "p90_seconds": statistics.quantiles(wall, n=10)[8],
    }


def planner_of(
    ladder: tuple[Tier, ...], model_id: str, gpu_id: str, host_bytes: int
) -> Callable[[], object]:
    """One full plan over a ladder, as a call without arguments."""
    model = model_by_id(model_id)
    machine = hypothetical_machine(gpu_id, host_bytes, 0)
    return lambda: search.plan(ladder, model, machine, Constraints())


def ladder_of(copies: int) -> tuple[Tier, ...]:
    """The ladder of the house with `copies` - 1 custom tiers above each of its tiers."""
    contexts = [
        (tier, tier.context_tokens + tier.context_tokens * copy // copies)
        for tier in load_ladder()
        for copy in range(copies)
    ]
    return tuple(
        Tier(number, context, tier.target_tokens, tier.lora_rank, custom=True)
        for number, (tier, context) in enumerate(contexts, start=1)
    )
