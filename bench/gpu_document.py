"""The results file of `python -m bench.gpu`: sections put in as they end, goals worked out anew.

Only the standard library: the parent process stays small, and takes nothing of the card.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Document = dict[str, Any]

# Sections of several parts: name before the dash, key in the document, what the parts are told by.
_PARTS = {"row": ("rows", "tier"), "speed": ("speed", "tokens")}
# How a section ended otherwise.
FAILED, SKIPPED = "failed", "skipped"
# A goal for cards of the compute capability of H100 and H200.
_UTILISATION_GOAL, _UTILISATION_TIER, _UTILISATION_CAPABILITY = 0.57, 8, "9.0"
_GRADIENT_ERROR_GOAL = 1.5


def read_document(path: Path) -> Document:
    """What a results file holds; empty without one."""
    if not path.exists():
        return {}
    document: Document = json.loads(path.read_text(encoding="utf-8"))
    return document


def write_document(document: Mapping[str, Any], path: Path) -> None:
    """Replaces the file in one go: a run that is cut off leaves the last whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def has_section(document: Mapping[str, Any], name: str) -> bool:
    """Whether the document has a section's result."""
    kind, _, number = name.partition("-")
    if kind not in _PARTS:
        return name in document
    key, told_by = _PARTS[kind]
    return any(part[told_by] == int(number) for part in document.get(key, []))


def put_result(document: Document, name: str, result: Mapping[str, Any], seconds: float) -> None:
    """Puts a section's result in place of an earlier one."""
    _forget(document, name)
    kind = name.partition("-")[0]
    if name == "environment":
        document.update(result)
    elif kind in _PARTS:
        key, told_by = _PARTS[kind]
        others = [part for part in document.get(key, []) if part[told_by] != result[told_by]]
        document[key] = sorted([*others, dict(result)], key=lambda part: int(part[told_by]))
    else:
        document[name] = dict(result)
    document.setdefault("section_seconds", {})[name] = seconds
    document["goals"] = goals(document)


def put_failure(
    document: Document, name: str, error: str, partial: Mapping[str, Any] | None = None
) -> None:
    """Records a section that failed, with the last line of its error and what it had by then."""
    _forget(document, name)
    row: Document = {"section": name, "error": error}
    document.setdefault(FAILED, []).append(row | ({"partial": dict(partial)} if partial else {}))
    document["goals"] = goals(document)


def put_skip(document: Document, name: str, reason: str) -> None:
    """Records a section that was not tried."""
    _forget(document, name)
    document.setdefault(SKIPPED, []).append({"section": name, "reason": reason})


def _forget(document: Document, name: str) -> None:
    for key in (FAILED, SKIPPED):
        document[key] = [row for row in document.get(key, []) if row["section"] != name]


def goals(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What was to be reached, by name: limit, what was measured, and whether it was met.

    `met` is null where nothing was measured that could tell.
    """
    return dict(_goals(document))


def _goals(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = document.get("rows", [])
    capped = [row for row in rows if row.get("inside_cap") is not None]
    failed = [row for row in document.get(FAILED, []) if row["section"].startswith("row-")]
    tried = len(capped) + len(failed)
    for name, key in (("cap", "inside_cap"), ("vram", "inside_vram")):
        outside = sum(not row[key] for row in capped) + len(failed)
        goal = _at_most(0, outside if tried else None)
        yield f"rows_not_inside_their_{name}", goal | {"rows": tried}
    retries = [row["allocation_retries"] for row in capped]
    yield "allocation_retries", _at_most(0, sum(retries) if capped else None)
    variants = document.get("gradients", {}).get("streaming", [])
    ratios = [row["error_over_stock"] for row in variants if row.get("error_over_stock")]
    worst = max(ratios, default=None)
    yield "gradient_error_over_stock", _at_most(_GRADIENT_ERROR_GOAL, worst)
    yield "model_flops_utilisation_at_tier_8", _utilisation_goal(document, rows)


def _utilisation_goal(document: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    measured = next(
        (row.get("model_flops_utilisation") for row in rows if row["tier"] == _UTILISATION_TIER),
        None,
    )
    goal = {"at_least": _UTILISATION_GOAL, "measured": measured, "met": None}
    capability = document.get("environment", {}).get("compute_capability")
    if measured is not None and capability == _UTILISATION_CAPABILITY:
        goal["met"] = measured >= _UTILISATION_GOAL
    return goal | {"for_compute_capability": _UTILISATION_CAPABILITY}


def _at_most(limit: float, measured: float | None) -> dict[str, Any]:
    return {
        "at_most": limit, "measured": measured,
        "met": None if measured is None else measured <= limit,
    }  # fmt: skip
