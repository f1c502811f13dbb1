"""Sections of `python -m bench.gpu` inside a child process: found by name, run one by one.

Each leaves a file NAME.json: `seconds` and `result`, or `error` (its last line); while it runs,
`partial`, what it knows so far.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.gpu_document import Document, put_result, write_document
from bench.gpu_settings import Settings

Measure = Callable[[Settings, int], dict[str, Any]]

# Module and function of what comes before the dash of a name; what is after it is a number.
_MODULES = {
    "environment": ("bench.gpu_environment", "measure"),
    "rates": ("bench.gpu_rates", "measure"),
    "gradients": ("bench.gpu_gradients", "measure"),
    "overlap": ("bench.gpu_overlap", "measure"),
    "kernels": ("bench.gpu_rows", "measure_kernels"),
    "row": ("bench.gpu_rows", "measure"),
    "speed": ("bench.gpu_speed", "measure"),
}


def known(name: str) -> bool:
    """Whether a section of this name can be run."""
    kind, dash, number = name.partition("-")
    return kind in _MODULES and (not dash or number.isdigit())


def run_sections(names: Sequence[str], settings: Settings, so_far: Document, folder: Path) -> None:
    """Runs sections one after another; one that raises does not keep the next from running."""
    for name in names:
        file, started = fragment_file(folder, name), time.monotonic()

        def note(partial: Mapping[str, Any], file: Path = file) -> None:
            write_document({"partial": dict(partial)}, file)

        try:
            result = _measure(name)(replace(settings, so_far=so_far, note=note), _number(name))
        except Exception as error:
            traceback.print_exc()
            write_document(_read(file) | {"error": last_line(error)}, file)
            continue
        seconds = time.monotonic() - started
        put_result(so_far, name, result, seconds)
        write_document({"seconds": seconds, "result": result}, file)


def fragment_file(folder: Path, name: str) -> Path:
    """Where a section's outcome is written."""
    return folder / f"{name}.json"


def last_line(error: BaseException) -> str:
    """The last line of an error as Python prints it, its kind before it where it says which."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def _measure(name: str) -> Measure:
    module, function = _MODULES[name.partition("-")[0]]
    print(f"{name} ...", file=sys.stderr, flush=True)
    measure: Measure = getattr(importlib.import_module(module), function)
    return measure


def _number(name: str) -> int:
    return int(name.partition("-")[2] or 0)


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
