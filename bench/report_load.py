"""The section of docs/benchmarks.md on many clients at once."""

from __future__ import annotations

from bench.report_text import (
    NOT_MEASURED,
    Body,
    Document,
    count,
    goal_table,
    seconds,
    significant,
    size,
    table,
)


def load(document: Document) -> Body:
    """Watchers, submits, and memory over a long time."""
    watchers, submits = document.get("watchers"), document.get("submits")
    soak = document.get("soak")
    if not (watchers and submits and soak):
        return Body(f"The file has not all parts: {NOT_MEASURED}.")
    late = watchers["late_seconds"]
    finding = (
        f"{count(watchers['watchers'])} watchers are told of an event after "
        f"{seconds(late['median'])}, 99 % of times within {seconds(late['p99'])}. "
        f"The API takes {significant(submits['taken_per_second'])} runs a second from "
        f"{count(submits['clients'])} clients, and loses {count(submits['lost'])}."
    )
    blocks = [
        _latencies(watchers, submits),
        f"Resident memory over {count(soak['seconds'])} s of use, by the median of its second "
        "quarter and of its last:",
        _memory(soak),
        goal_table(document.get("goals", {})),
    ]
    limits = [
        f"Refused in {count(submits['seconds'])} s of submitting: {submits['refused'] or 'none'}.",
        f"Watchers cut off: {watchers['cut_off'] or 'none'}. They all come at once, and the first "
        "event of the last of them is late by what that takes.",
        "In the soak every watcher leaves after an event, often in the middle of a write. A write "
        "that fails keeps some hundred bytes inside gRPC, in a bare `grpc.aio` server too; calls "
        "without one were not seen to keep any.",
        "The engine of these runs trains nothing: this is the load of control, not of cards. "
        "Clients share the cores with the servers.",
    ]
    return Body(finding, blocks, limits)


def _latencies(watchers: Document, submits: Document) -> str:
    latencies = [
        ("an event reaches a watcher", watchers["late_seconds"]),
        ("Plan, beside the watchers", watchers["plans_seconds"]),
        ("CreateRun, as many as it takes", submits["create_seconds"]),
    ]
    rows = [
        (name, count(found["count"]), seconds(found["median"]), seconds(found["p99"]),
         seconds(found["highest"]))
        for name, found in latencies
    ]  # fmt: skip
    return table(("", "times", "median", "99 % within", "longest"), rows)


def _memory(soak: Document) -> str:
    rows = [
        (name, size(soak[name]["early_bytes"]), size(soak[name]["late_bytes"]),
         f"{100 * soak[name]['growth']:+.1f} %")
        for name in ("api", "planner")
    ]  # fmt: skip
    return table(("process", "early", "late", "growth"), rows)
