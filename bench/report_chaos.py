"""The section of docs/benchmarks.md on what was broken and what was lost."""

from __future__ import annotations

from bench.report_text import NOT_MEASURED, Body, Document, count, seconds, significant, table


def chaos(document: Document) -> Body:
    """Rounds of every fault, and in how many anything was lost."""
    rows = document.get("faults", [])
    if not rows:
        return Body(f"The file has no rounds: {NOT_MEASURED}.")
    rounds, lost = (sum(int(row[name]) for row in rows) for name in ("rounds", "lost"))
    cells = [
        (row["fault"], count(row["rounds"]), count(row["lost"]), significant(row["attempts"]),
         seconds(row["median_seconds"]), seconds(row["longest_seconds"]))
        for row in rows
    ]  # fmt: skip
    names = ("fault", "rounds", "lost", "attempts, mean", "median round", "longest round")
    return Body(
        f"{count(rounds)} rounds of {count(len(rows))} faults: anything lost in {count(lost)}.",
        [
            "A round is a run of a tiny model by real engines and two workers, a fault at a random "
            "moment of it, and a look afterwards: it ended once, its losses and its adapter are "
            "those of a run that was left alone, to the bit, every checkpoint is whole and no "
            "engine is alive. What each fault does stands in "
            "[`tests/support/faults.py`](../tests/support/faults.py).",
            table(names, cells),
        ],
        [
            "One machine, the CPU engine, one store. Networks that split, and GPUs that fall off "
            "the bus, were not tried.",
            "An acknowledged change may be lost with the last second before the store is killed "
            "(`appendfsync everysec`); the fault waits that long first.",
        ],
    )
