"""`python -m bench.report`: figures come from the data, and a stale page is noticed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.lines import Line2D

from bench import (
    charts,
    report,
    report_chaos,
    report_gpu,
    report_measurements,
    report_predictions,
)
from bench.report_facts import facts
from bench.report_text import Ratio, percent, ratio_of, seconds, significant, span, summarise
from elite_cli.charts.files import save
from tests.unit.bench import test_pieces

MACHINE = {"cpu": "Some CPU", "cores": 3, "torch": "2.0", "date": "2001-02-03"}


def memory_case(predicted: float, measured: float, **more: Any) -> dict[str, Any]:
    return {
        "model": "m", "tier": 1, "tokens": 4608, "set": "bfloat16", "predicted_bytes": predicted,
        "measured_bytes": measured, **more,
    }  # fmt: skip


def speed_case(executor: str, tokens: int, *samples: float, **more: Any) -> dict[str, Any]:
    return {
        "model": "m", "layers": 2, "dtype": "float32", "tokens": tokens, "executor": executor,
        "step_seconds": sorted(samples)[len(samples) // 2], "samples": list(samples),
        "peak_bytes": 1000 * tokens, **more,
    }  # fmt: skip


def ladder_row(tier: int, device: float, vram: float) -> dict[str, Any]:
    return {
        "model": "m", "tier": tier, "device_bytes": device, "vram_bytes": vram,
        "planned_device_bytes": 1.01 * device, "host_bytes": 2**30, "disk_bytes": 0,
        "measured_tokens": [256, 512], "measured_layers": [2, 3],
    }  # fmt: skip


def gpu_row(tier: int, layers: int) -> dict[str, Any]:
    """A row of which all was run, or three layers and half the chunks."""
    is_whole = layers == 28
    sizes = {
        "vram_bytes": 8e9, "cap_bytes": 7e9, "planned_bytes": 4e9, "peak_allocated_bytes": 5e9,
        "peak_reserved_bytes": 6e9, "process_bytes": 7e9, "planned_host_bytes": 9e9,
        "host_peak_resident_bytes": 8e9,
    }  # fmt: skip
    return sizes | {
        "tier": tier, "tokens": 1000, "layers": layers, "full_layers": 28, "chunks": 10,
        "sampled_chunks": None if is_whole else 5, "chunk_tokens": 100, "error_percent": -20.0,
        "allocation_retries": 0, "inside_vram": True, "optimizations": ["a", "b"],
        "planned_step_seconds": 9.0, "planned_step_seconds_by_card_table": 12.0,
        "step_seconds": 10.0, "samples": [10.0],
        "extrapolated_step_seconds": None if is_whole else 20.0, "planned_over_measured": 0.9,
        "tokens_per_second": 100.0, "model_flops_utilisation": 0.5,
        "hardware_flops_utilisation": 0.6,
    }  # fmt: skip


DOCUMENTS: Mapping[str, Any] = {
    "pieces": {**test_pieces.DOCUMENT, "machine": MACHINE},
    "waiting": {"machine": MACHINE, "model": "a", "tokens": 64, "rounds": 3, "cases": [
        {"policy": policy, "place": place, "seconds": samples[0], "samples": samples}
        for policy, place, *samples in (
            ("not at all", "alone", 2.0), ("not at all", "beside", 2.0),
            ("some microseconds", "alone", 1.0, 1.0, 3.0), ("some microseconds", "beside", 4.0),
        )
    ]},
    "memory": {"machine": MACHINE, "cases": [
        memory_case(101, 100), memory_case(99, 100), memory_case(
            104, 100, set="streaming float32", layers=3, predicted_host_bytes=110 * 2**30,
            measured_host_bytes=100 * 2**30),
    ]},
    "time": {"machine": MACHINE, "cases": [
        {"model": "m", "layers": 1, "tokens": 64, "set": "streaming", "predicted_seconds": 1.5,
         "low": 0.5, "high": 1.1, "measured_seconds": 1.0, "samples": [0.9, 1.1], "spread": 0.2,
         "cpu_share": 0.5, "predicted_lines": {"linear": 1.0, "disk": 0.0}},
        {"model": "m", "tokens": 64, "predicted_seconds": 0.9, "measured_seconds": 1.0},
    ]},
    "speed": {"machine": MACHINE | {"device": "cpu"}, "cases": [
        speed_case("stock", 2048, 1.0, 2.0, 4.0),
        speed_case("streaming", 2048, 0.5, 2.0, 1.0, peak_bytes=512_000),
        speed_case("deepspeed", 2048, 3.0, peak_bytes=None),
        speed_case("stock", 1024, 1.0, 1.0), speed_case("streaming", 1024, 1.5, 0.9),
        speed_case("streaming", 4096, 9.0),
    ], "goals": {"time_at_2048": {"at_most": 0.4, "measured": 0.5, "met": False}},
       "left_out": [{"model": "m", "tokens": 9999, "reason": "it would take too long"}]},
    "ladder": {"machine": MACHINE, "rows": [ladder_row(1, 3e9, 4e9), ladder_row(2, 7e9, 6e9)],
               "growth": [{"mode": "keys on the device", "measured": 12, "expected": 12}]},
    "chaos": {"machine": MACHINE, "faults": [
        {"fault": "a plug pulled", "rounds": 7, "lost": 2, "attempts": 1.5, "median_seconds": 3.0,
         "longest_seconds": 60.0}]},
    "gpu": {"environment": {"card": "Some GPU"}, "rows": [gpu_row(8, 28), gpu_row(9, 3)],
            "speed": [{"tokens": 4096, "chunk_tokens": 4096, "stock": {"error": "no memory"},
                       "streaming": {"step_seconds": 2.0, "samples": [1.0, 2.0, 4.0],
                                     "peak_bytes": 3e9},
                       "time_over_stock": None, "memory_over_stock": None}],
            "skipped": [{"section": "row-2", "reason": "1 of 9 s are left"}]},
    "profile": {"cases": [{
        "model": "a", "tokens": 4096, "seconds": 4.0,
        "phases": {"forward": {"attention": 1.0, "copies": 0.0},
                   "backward": {"attention": 2.0, "copies": 1.0}},
    }]},
    "codecs": {"model": "m", "cases": [
        {"codec": "a", "attention_outputs": "kept", "tokens": 9, "gradient_cosine": 0.25},
        {"codec": "a", "attention_outputs": "computed again", "gradient_cosine": 0.75},
    ]},
    "planner": {"goals": {"plans_per_second": {"at_least": 10, "measured": 20, "met": True}},
                "load": {"clients": 7, "worker_processes": 2, "Plan": {"per_second": 20.4}}},
}  # fmt: skip


def folder_with(folder: Path, **documents: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


def test_the_page_is_what_the_results_give(tmp_path: Path) -> None:
    report.main(["--output", str(tmp_path / "benchmarks.md")])
    text = (tmp_path / "benchmarks.md").read_text()
    assert report.PAGE.read_text() == text, "stale: run python -m bench.report"
    pictures = re.findall(r"\]\((benchmarks/\w+\.svg)\)", text)
    assert pictures
    for picture in pictures:
        assert (tmp_path / picture).exists()
        assert (report.PAGE.parent / picture).exists()


def test_links_of_the_page_lead_somewhere() -> None:
    text = report.PAGE.read_text()
    headings = {report._anchor(line[3:]) for line in text.splitlines() if line.startswith("## ")}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings
        else:
            assert (report.PAGE.parent / target).exists(), target


def test_check_fails_on_a_stale_page_and_writes_nothing(tmp_path: Path) -> None:
    results = folder_with(tmp_path / "results", memory=DOCUMENTS["memory"])
    output = tmp_path / "page.md"
    arguments = ["--results", str(results), "--output", str(output)]
    with pytest.raises(SystemExit, match=r"page\.md is missing: run python -m bench.report"):
        report.main([*arguments, "--check"])
    assert not output.exists()
    report.main(arguments)
    report.main([*arguments, "--check"])
    folder_with(results, memory={"machine": MACHINE, "cases": [memory_case(2, 1)]})
    with pytest.raises(SystemExit, match=r"page\.md is not what bench/results gives"):
        report.main([*arguments, "--check"])
    report.main(arguments)
    report.picture_path(output, "memory").unlink()
    with pytest.raises(SystemExit, match=r"memory\.svg is missing"):
        report.main([*arguments, "--check"])


def test_without_files_nothing_is_claimed() -> None:
    text = report.page({})
    for section in report.SECTIONS:
        assert (f"`{section.command}` measures it" in text) is not section.optional
    assert "Not measured: no GPU was at hand; `python -m bench.gpu` measures it." in text
    assert "Phases of a step" not in text
    assert "Honest limits" not in text


@pytest.mark.parametrize("name", [section.name for section in report.SECTIONS])
@pytest.mark.parametrize("empty", [{}, {"machine": None}, {"cases": [], "rows": []}])
def test_empty_files_claim_nothing(name: str, empty: dict[str, Any]) -> None:
    section = next(section for section in report.SECTIONS if section.name == name)
    body = section.read(empty)
    assert not re.search(r"[0-9]", body.finding)
    assert report.pictures({name: empty}) == {}
    assert report.page({name: empty}).startswith("<!--")


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "speed.json").write_text(text)
    with pytest.raises(SystemExit, match=r"speed\.json"):
        report.main(["--results", str(tmp_path), "--output", str(tmp_path / "page.md")])
    assert not (tmp_path / "page.md").exists()


def test_errors_are_summed_up_with_and_without_their_sign() -> None:
    found = summarise([-3.0, 1.0, 2.0, 10.0])
    assert (found.count, found.median, found.mean_absolute) == (4, 2.5, 4.0)
    assert (found.worst, found.mean, found.lowest) == (10.0, 2.5, -3.0)
    with pytest.raises(ValueError, match="no errors"):
        summarise([])


def test_ratios_are_of_rounds_where_both_have_the_same() -> None:
    base = {"samples": [1.0, 2.0, 4.0], "figure": 2.0}
    same = {"samples": [2.0, 1.0, 4.0], "figure": 2.0}
    assert ratio_of(base, same, "samples", "figure") == Ratio(1.0, 0.5, 2.0)
    fewer = {"samples": [9.0], "figure": 3.0}
    assert ratio_of(base, fewer, "samples", "figure") == Ratio(1.5)
    assert ratio_of(base, {"samples": [9.0]}, "samples", "figure") is None
    assert ratio_of({}, same, "samples", "figure") is None
    assert str(Ratio(0.5, 0.25, 0.75)) == "0.50 (0.25 to 0.75)"


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (0.01234, "0.0123"), (1.714, "1.71"), (16.94, "16.9"), (201.4, "201"),
     (12345.6, "12 346"), (None, "not measured")],
)  # fmt: skip
def test_three_digits(number: float | None, shown: str) -> None:
    assert significant(number) == shown


def test_figures_in_words() -> None:
    assert [percent(-0.001), percent(0.086), percent(-0.2)] == ["0.00 %", "+0.09 %", "-0.20 %"]
    assert [seconds(0.00586), seconds(16.94), seconds(None)] == [
        "5.86 ms", "16.9 s", "not measured",
    ]  # fmt: skip
    assert [span([512, 8192, 600]), span([7]), span([])] == ["512 to 8 192", "7", "not measured"]


def test_memory_is_told_by_executor_and_set() -> None:
    body = report_predictions.memory(DOCUMENTS["memory"])
    assert body.finding == (
        "3 cases: median error 1.00 %, worst 4.00 % (m, tier 1, streaming float32), "
        "mean +1.33 %, lowest -1.00 %."
    )
    text = "\n".join(body.blocks)
    assert "| **resident** | **all** | 2 | 1.00 % | 1.00 % | 0.00 % | -1.00 % |" in text
    assert "| streaming | host memory, 1 GiB and more | 1 | 10.00 % | 10.00 % |" in text
    assert "Streaming cases have 3 layers" in "\n".join(body.limits)
    alone = report_predictions.memory({"cases": [memory_case(1, 1)]})
    assert "The streaming executor has no case in this file" in "\n".join(alone.limits)


def test_time_says_how_noisy_it_was() -> None:
    body = report_predictions.time(DOCUMENTS["time"])
    assert "mean absolute error 30.0 %, median 30.0 %, mean +20.0 %, worst 50.0 %" in body.finding
    assert "1 of 1 lie between" in body.finding
    limits = "\n".join(body.limits)
    assert "of 2 rounds, over the median, is 20 %" in limits
    assert "zero in every case, and so untested: disk" in limits


def test_every_executor_there_is_stands_beside_stock() -> None:
    body = report_measurements.speed(DOCUMENTS["speed"])
    text = "\n".join(body.blocks)
    assert "| tokens | stock | streaming | deepspeed | streaming over stock | deepspeed " in text
    assert "| 2 048 | 2.00 s | 1.00 s | 3.00 s | 0.50 (0.25 to 1.00) | 1.50 |" in text
    assert "| 4 096 | not measured | 9.00 s | not measured | not measured | not" in text
    assert "| time at 2048 | at most 0.4 | 0.5 | **no** |" in text
    assert (
        "0.50 (0.25 to 1.00) of stock's time and 0.25 of its peak memory at 2 048" in body.finding
    )
    assert "1.50 of stock's time and not measured of its peak memory" in body.finding
    assert "faster in every round" not in body.finding
    assert "Left out: m at 9 999 tokens, it would take too long." in body.limits


def test_faster_means_in_every_round_from_there_on() -> None:
    cases = [speed_case("stock", tokens, 2.0, 2.0) for tokens in (1, 2, 4, 8)]
    shares = {1: (1.0, 1.0), 2: (1.0, 3.0), 4: (1.0, 1.9), 8: (1.0, 1.0)}
    cases += [speed_case("streaming", tokens, *taken) for tokens, taken in shares.items()]
    finding = report_measurements.speed({"cases": cases}).finding
    assert "faster in every round from 4 tokens on" in finding


def test_what_was_lost_is_said_first() -> None:
    body = report_chaos.chaos(DOCUMENTS["chaos"])
    assert body.finding == "7 rounds of 1 faults: anything lost in 2."
    assert "| a plug pulled | 7 | 2 | 1.50 | 3.00 s | 60.0 s |" in "\n".join(body.blocks)


def test_a_ladder_row_outside_its_card_is_named() -> None:
    body = report_predictions.ladder(DOCUMENTS["ladder"])
    assert body.finding.startswith("1 of 2 rows take no more than their card has; outside: m at ")
    assert "median error 1.00 %" in body.finding
    text = "\n".join(body.blocks)
    assert "| m | 2 | 7.00 GB | 6.00 GB | **no** | 7.07 GB | +1.00 % | 1.00 GiB | 0 B |" in text
    assert "| keys on the device | 12 | 12 |" in text
    assert "Steps of 2 to 3 layers and 256 to 512 tokens were measured" in "\n".join(body.limits)


def test_codecs_planner_and_goals() -> None:
    assert report_measurements.codecs(DOCUMENTS["codecs"]).finding == (
        "Cosine with the exact gradients, at best: a 0.750. "
        "Worst: 0.250, a with attention outputs kept."
    )
    body = report_measurements.planner(DOCUMENTS["planner"])
    assert "7 clients at 2 worker processes get 20.4 plans a second" in body.finding
    assert "1 of 1 goals are met" in body.finding
    assert "| plans per second | at least 10.0 | 20.0 | yes |" in "\n".join(body.blocks)


def test_waits_are_compared_with_the_engine() -> None:
    body = report_measurements.waiting(DOCUMENTS["waiting"])
    assert body.finding == (
        "With some microseconds, a step's time over that with others: alone, 0.50 (not at all); "
        "beside, 2.00 (not at all)."
    )
    assert "| some microseconds | 1.00 s (1.00 s to 3.00 s) | 4.00 s" in "\n".join(body.blocks)
    assert not report_measurements.waiting({}).blocks


def test_facts_keep_every_figure_and_say_what_is_missing() -> None:
    text = "\n".join(facts({
        "a_bytes": 2**30, "b_seconds": None, "names": ["x", "y"], "ok": True,
        "rows": [{"tier": 1, "peak_bytes": 1024}, {"tier": 2, "error": "no | memory"}],
        "phases": {"forward": {"copy_seconds": 1.5}, "loss": {"copy_seconds": 0.5}},
    }))  # fmt: skip
    for line in (
        "| a | 1.00 GiB |", "| b | not measured |", "| names | x, y |", "| ok | yes |",
        "| tier | peak | error |", "| 1 | 1.00 KiB |  |", "| 2 |  | no \\| memory |",
        "**phases**", "| forward | 1.50 s |", "| loss | 500 ms |",
    ):  # fmt: skip
        assert line in text, line


def test_rows_on_a_gpu_say_what_of_them_was_run() -> None:
    body = report_gpu.gpu(DOCUMENTS["gpu"])
    assert body.finding == (
        "Some GPU: 2 of 2 rows ran inside their VRAM. 1 000 tokens in 8.00 GB, all 28 layers: "
        "10.0 s a step, model FLOPs 0.50 of the fastest product's."
    )
    text = "\n".join(body.blocks)
    assert "| 8 | 1 000 | all | 8.00 GB | 7.00 GB | 4.00 GB | 5.00 GB | -20.00 % |" in text
    assert "| 9 | 1 000 | 3 of 28 layers, 5 of 10 chunks |" in text
    assert "| 20.0 s, extrapolated |" in text
    assert "| out of memory | 2.00 s (1.00 s to 4.00 s) | not measured | out of memory |" in text
    assert list(body.limits) == [
        "Extrapolated, not run whole: tiers 9.", "Not measured: row-2.",
        "One step each, without a spread: tiers 8 and 9.",
    ]  # fmt: skip
    assert report_gpu.gpu({}).blocks == []


def test_the_whole_page_of_made_up_data_holds_together() -> None:
    others = {f"{name}-avx512": DOCUMENTS[name] for name in ("speed", "time")}
    text = report.page({**DOCUMENTS, **others})
    assert "Some CPU, 3 cores, torch 2.0" in text
    assert "not named in the file" in text
    assert text.count("## ") == len(report.SECTIONS)
    assert "Some GPU: 2 of 2 rows" in text
    for name in ("memory", "time", "speed", "ladder"):
        assert f"(benchmarks/{name}.svg)" in text


@pytest.mark.parametrize("name", ["memory", "time", "speed", "ladder"])
def test_the_same_data_gives_the_same_picture(tmp_path: Path, name: str) -> None:
    paths = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for path in paths:
        save(report.pictures(DOCUMENTS)[name], path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert b"<dc:date>" not in first


def test_bars_and_marks_of_the_ladder_are_the_files() -> None:
    figure = charts.ladder(DOCUMENTS["ladder"])
    assert figure is not None
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [3.0, 7.0]
    assert [bar.get_hatch() for bar in axes.patches] == [None, "////"]
    marks = [line.get_segments()[0][0][1] for line in axes.collections]
    assert marks == [4.0, 6.0]


def points(line: Line2D) -> list[tuple[float, ...]]:
    return [tuple(point) for point in np.asarray(line.get_xydata()).tolist()]


def test_lines_of_speed_go_through_what_was_measured() -> None:
    figure = charts.speed(DOCUMENTS["speed"])
    assert figure is not None
    left, right = figure.axes
    stock, streaming, deepspeed = left.lines
    assert points(stock) == [(1024, 1.0), (2048, 2.0)]
    assert points(streaming) == [(1024, 1.5), (2048, 1.0), (4096, 9.0)]
    assert points(deepspeed) == [(2048, 3.0)]
    assert points(right.lines[2]) == []


def test_phases_of_a_step_are_told_by_kind() -> None:
    body = report_measurements.profile(DOCUMENTS["profile"])
    assert body.finding == "Of a step of 4 096 tokens, 75 % is attention and 25 % is copies."
    assert "| 4 096 | backward | 2.00 s | 1.00 s |" in body.blocks[0]
