"""Figures in the README are those of the files under bench/results/."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
_SECONDS = {"s": 1, "min": 60, "h": 3600}


def results(name: str) -> Any:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())


def table_after(words: str) -> list[list[str]]:
    """Cells of the first table's rows behind these words, without its heads."""
    lines = README[README.index(words) :].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[first + 2 :])
    return [
        [cell.strip().replace("**", "") for cell in line.strip("|").split("|")] for line in rows
    ]


def seconds(text: str) -> float:
    return sum(float(n) * _SECONDS[unit] for n, unit in re.findall(r"([\d.]+) (s|min|h)\b", text))


def tokens_in(cell: str) -> int:
    found = re.match(r"\d[\d ]*", cell)
    assert found
    return int(found[0].replace(" ", ""))


@pytest.mark.parametrize(
    "cells", table_after("Streaming against stock transformers with PEFT"), ids=lambda one: one[0]
)
def test_speed_is_that_of_the_file(cells: list[str]) -> None:
    document, tokens = results("speed"), tokens_in(cells[0])
    model = {"model": "llama-8x256", "tokens": tokens}
    cases = {one["executor"]: one for one in document["cases"] if model.items() <= one.items()}
    (ratio,) = (
        one for one in document["ratios"] if (model | {"over": "stock"}).items() <= one.items()
    )
    assert seconds(cells[1]) == pytest.approx(cases["stock"]["step_seconds"], rel=0.005)
    assert seconds(cells[2]) == pytest.approx(cases["streaming"]["step_seconds"], rel=0.005)
    assert float(cells[3].split()[0]) == pytest.approx(ratio["time"], abs=0.005)
    assert float(cells[4].split()[0]) == pytest.approx(ratio["memory"], abs=0.005)
    rounds = len(cases["stock"]["samples"])
    assert rounds > 1 or "one round" in cells[0]


@pytest.mark.parametrize("cells", table_after("On one H100,"), ids=lambda one: f"tier {one[0]}")
def test_a_row_on_a_gpu_is_that_of_the_file(cells: list[str]) -> None:
    (row,) = (one for one in results("gpu")["rows"] if one["tier"] == int(cells[0]))
    assert tokens_in(cells[1]) == row["tokens"]
    assert float(cells[2].split()[0]) * 1e9 == row["vram_bytes"]
    assert float(cells[3].split()[0]) * 1e9 == pytest.approx(row["process_bytes"], rel=0.005)
    step = row["extrapolated_step_seconds"] or row["step_seconds"]
    assert seconds(cells[4]) == pytest.approx(step, rel=0.01)
    assert seconds(cells[5]) == pytest.approx(row["planned_step_seconds"], rel=0.02)
    assert ("extrapolated" in cells[6]) == bool(row["extrapolated_step_seconds"])


@pytest.mark.parametrize("name", ["time", "time-avx512"])
def test_errors_of_time_are_those_of_the_file(name: str) -> None:
    (line,) = (one for one in README.splitlines() if f"[`{name}.json`]" in one and "|" in one)
    summary = results(name)["summary"]
    found = re.search(
        r"(\d+) cases.*error ([\d.]+) %, mean ([+-][\d.]+) %, worst ([\d.]+) %.* (\d+) between",
        line,
    )
    assert found, line
    figures = [float(one) for one in found.groups()]
    assert figures == [
        summary["cases"], round(summary["mean_absolute_error_percent"], 1),
        round(summary["mean_error_percent"], 1), round(summary["worst_absolute_error_percent"], 1),
        summary["between_low_and_high"],
    ]  # fmt: skip


def test_errors_of_memory_are_those_of_the_file() -> None:
    (line,) = (one for one in README.splitlines() if "[`memory.json`]" in one)
    summary = results("memory")["summary"]
    found = re.search(
        r"(\d+) cases, (\d+) models.*error ([\d.]+) %, worst ([\d.]+) %.*lowest (-[\d.]+) %", line
    )
    assert found, line
    assert [float(one) for one in found.groups()] == [
        summary["cases"], len({case["model"] for case in results("memory")["cases"]}),
        round(summary["median_absolute_error_percent"], 2),
        round(summary["worst_absolute_error_percent"], 1),
        round(summary["lowest_error_percent"], 1),
    ]  # fmt: skip


def test_the_time_of_a_plan_is_that_of_the_file() -> None:
    (line,) = (one for one in README.splitlines() if "[`planner.json`]" in one and "|" in one)
    document = results("planner")
    found = re.search(r"([\d.]+) ms of one core; (\d+) plans/s, 99 % within (\d+) ms", line)
    assert found, line
    eleven = next(one for one in document["search"]["ladders"] if one["tiers"] == 11)
    load = document["load"]["Plan"]
    assert [float(one) for one in found.groups()] == [
        round(1000 * eleven["cpu_p50_seconds"], 1), round(load["per_second"]),
        round(1000 * load["p99_seconds"]),
    ]  # fmt: skip
