"""Runs that survive: `python -m bench.chaos --rounds 20 --seed 1`.

Every round breaks something at a random moment of a run (tests/support/faults.py says what), and
looks whether anything was lost. Writes `bench/results/chaos.json` and prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.machine import describe_machine
from tests.support.chaos import Chaos, Round
from tests.support.faults import FAULTS, LONG_FAULTS

RESULTS = Path(__file__).parent / "results" / "chaos.json"
_ALL_FAULTS = {**FAULTS, **LONG_FAULTS}


def run_rounds(chaos: Chaos, rounds: int, seed: int) -> Iterator[Round]:
    """So many rounds: every fault once, in some order, then again; long faults only once."""
    chance = random.Random(seed)
    order = sorted(LONG_FAULTS) if rounds > len(FAULTS) else []
    for number in range(rounds):
        order = order or chance.sample(sorted(FAULTS), len(FAULTS))
        name = order.pop()
        one = chaos.run(name, _ALL_FAULTS[name], chance)
        verdict = "; ".join(one.problems) or "nothing lost"
        print(
            f"{number + 1:4} {one.fault:28} after {one.after_seconds:4.1f} s, "
            f"{one.attempts} attempts, {one.seconds:5.1f} s: {verdict}",
            flush=True,
        )
        yield one


def summary(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """By fault."""
    rows = []
    for fault in _ALL_FAULTS:
        of_fault = [one for one in rounds if one.fault == fault]
        if of_fault:
            rows.append({
                "fault": fault,
                "rounds": len(of_fault),
                "lost": sum(bool(one.problems) for one in of_fault),
                "attempts": statistics.mean(one.attempts for one in of_fault),
                "median_seconds": statistics.median(one.seconds for one in of_fault),
                "longest_seconds": max(one.seconds for one in of_fault),
            })  # fmt: skip
    return rows


def document(rounds: Sequence[Round], seed: int) -> dict[str, Any]:
    """What is written."""
    rows = summary(rounds)
    lost = sum(row["lost"] for row in rows)
    return {
        "machine": describe_machine(), "seed": seed, "faults": rows,
        "goals": [{"name": "rounds in which anything was lost", "at_most": 0, "measured": lost,
                   "met": lost == 0}],
        "rounds": [asdict(one) for one in rounds],
    }  # fmt: skip


def main() -> None:
    """Breaks things, prints and writes; exits with 1 when anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=len(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Chaos(Path(folder))) as chaos:
        for one in run_rounds(chaos, arguments.rounds, arguments.seed):
            rounds.append(one)
            # After every round: hours of rounds are not lost with the last one.
            written = document(rounds, arguments.seed)
            arguments.output.write_text(json.dumps(written, indent=1) + "\n")
    lost = sum(bool(one.problems) for one in rounds)
    print(f"{len(rounds)} rounds, {lost} in which anything was lost")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
