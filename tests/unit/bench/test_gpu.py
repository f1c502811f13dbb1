"""What `python -m bench.gpu` does without a GPU: all sections, tiny, and how it counts."""

from __future__ import annotations

import argparse
import json
import math
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType

from bench import gpu, gpu_device, gpu_plans, gpu_rows, gpu_sections, gpu_speed, speed
from bench.gpu_document import goals, put_failure, put_result, read_document
from bench.gpu_extrapolation import Share, Stages, full_step_seconds
from bench.gpu_models import SampledExecutor, StreamingOnDevice, random_window, spread
from bench.gpu_overlap import _timeline, summary
from bench.gpu_plans import Limits, PlanRefused, RowPlan
from bench.gpu_row_run import Ran
from bench.gpu_settings import FAST_MODEL, NO_CUDA, Settings
from bench.speed_steps import Stock
from services.planner.ladder import load_ladder
from services.planner.machine import ComputeDtype, DeviceKind
from services.planner.models import model_by_id
from services.trainer.engine.adapters import trainable_parameters
from services.trainer.engine.executors.streaming import StreamingExecutor
from services.trainer.engine.streaming.chunks import Chunk, chunks_of
from services.trainer.engine.streaming.settings import StreamingSettings

_CARD = gpu_plans.Device("NVIDIA H200", (9, 0), 150_754_820_096, 600 * 2**20, 64 * 2**20)


def test_fast_measures_every_section_on_a_cpu(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    assert gpu.main(["--fast", "--output", str(output)]) == 0
    document = read_document(output)
    assert (document["failed"], document["skipped"]) == ([], [])
    assert set(document["section_seconds"]) == {section.name for section in gpu.FAST_SECTIONS}
    check_gradients(document["gradients"])
    check_rows(*document["rows"])
    (pair,) = document["speed"]
    assert pair["time_over_stock"] > 0
    assert pair["stock"]["loss"] == pytest.approx(pair["streaming"]["loss"], rel=0.02)
    kernels = {row["kernel"]: row for row in document["kernels"]["kernels"]}
    assert kernels["sdpa_flash"]["extrapolated_step_seconds"] > 0
    assert document["goals"]["gradient_error_over_stock"]["met"] is True
    if not torch.cuda.is_available():
        assert "cannot run" in kernels["sdpa_cudnn"]["reason"]
        for part, name in ((document["environment"], "card"), (document["overlap"], "overlap")):
            assert (part[name], part["not_measured"][name]) == (None, NO_CUDA)


def check_rows(whole: dict[str, Any], sampled: dict[str, Any]) -> None:
    assert (whole["tier"], whole["layers"], whole["sampled_chunks"]) == (8, 4, None)
    assert (whole["extrapolated_step_seconds"], math.isfinite(whole["loss"])) == (None, True)
    assert sampled["layers"] < sampled["full_layers"]
    assert sampled["sampled_chunks"] < sampled["chunks"]
    assert sampled["extrapolated_step_seconds"] > sampled["step_seconds"]
    for row in (whole, sampled):
        assert set(row["phases"]) == {"forward", "last_layer", "loss", "backward", "other"}
        if not torch.cuda.is_available():
            assert row["peak_allocated_bytes"] is None
            assert row["not_measured"]["peak_allocated_bytes"] == NO_CUDA


def check_gradients(found: dict[str, Any]) -> None:
    assert found["streaming_float32"]["relative_error"] < 1e-5
    assert 0 < found["stock"]["relative_error"] < 0.05
    measured = [row for row in found["streaming"] if row["error_over_stock"]]
    assert len(measured) >= 3
    assert all(row["relative_error"] < 0.05 and row["cosine"] > 0.99 for row in measured)
    assert all(row["reason"] for row in found["streaming"] if row["error_over_stock"] is None)


def test_without_a_gpu_it_says_so_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "has_cuda", lambda: False)
    assert gpu.main(["--output", str(tmp_path / "gpu.json")]) == 2
    assert not list(tmp_path.iterdir())
    assert NO_CUDA in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        gpu.main(["--fast"])


# Arguments: the folder for what they leave, and the results file so far.
_WRITE = "import json, sys; json.dump({}, open(sys.argv[1] + '/{}.json', 'w'))"
_CHILDREN = {
    "environment": _WRITE.format("{'seconds': 1, 'result': {'environment': {}}}", "environment"),
    "rates": "raise ValueError('first\\nnot today')",
    "gradients": "import time; time.sleep(60)",
    "overlap": "import os; os.kill(os.getpid(), 9)",
    "row-3": _WRITE.format("{'partial': {'tier': 3}}", "row-3") + "; sys.exit('no memory')",
    "row-2": _WRITE.format(
        "{'seconds': 2, 'result': {'tier': 2, 'file': json.load(open(sys.argv[2]))}}", "row-2"
    ),
}


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(names: list[str], folder: Path, options: Any, _: float) -> list[str]:
        return [sys.executable, "-c", _CHILDREN[names[0]], str(folder), str(options.output)]

    monkeypatch.setattr(gpu, "child_command", command)


def run(output: Path, sections: list[gpu.Section]) -> dict[str, Any]:
    options = argparse.Namespace(budget_seconds=100.0, output=output)
    gpu.run([[section] for section in sections], {}, options)
    return read_document(output)


@pytest.mark.usefixtures("children")
def test_a_section_that_fails_is_recorded_and_the_rest_runs(tmp_path: Path) -> None:
    document = run(tmp_path / "out.json", [gpu.Section(name, 2.0, 0.0) for name in _CHILDREN])
    failed = {row["section"]: row for row in document["failed"]}
    assert failed["rates"]["error"] == "exit status 1: not today"
    assert failed["gradients"]["error"] == "ended at its limit of 2 s"
    assert failed["overlap"]["error"] == "signal 9"
    assert failed["row-3"]["error"] == "exit status 1: no memory"
    assert failed["row-3"]["partial"] == {"tier": 3}
    (row,) = document["rows"]
    # A run that is cut off there keeps what it had.
    assert row["file"]["environment"] == document["environment"] == {}
    assert [one["section"] for one in row["file"]["failed"]] == list(failed)


@pytest.mark.usefixtures("children")
def test_sections_that_come_too_late_are_skipped_and_named(tmp_path: Path) -> None:
    (skipped,) = run(tmp_path / "out.json", [gpu.Section("row-2", 9.0, 1000.0)])["skipped"]
    assert skipped == {"section": "row-2", "reason": "100 of 100 s are left"}


def test_resume_adds_to_the_file_and_only_measures_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[str] = []

    def batch(names: list[str], document: dict[str, Any], *_: Any) -> None:
        ran.extend(names)
        put_result(document, names[0], {"tier": 1, "tokens": 1, "now": True}, 1.0)

    monkeypatch.setattr(gpu, "has_cuda", lambda: True)
    monkeypatch.setattr(gpu, "_run_batch", batch)
    monkeypatch.setattr(gpu, "show", lambda _: None)
    output, had = tmp_path / "gpu.json", json.dumps({"rows": [{"tier": 1}], "rates": {}})
    output.write_text(had)
    gpu.main(["--resume", "--output", str(output)])
    names = [section.name for section in gpu.SECTIONS]
    assert all(gpu_sections.known(name) for name in names)
    assert {f"row-{tier.tier}" for tier in load_ladder()} <= set(names)
    assert ran == [name for name in names if name not in ("row-1", "rates")]
    output.write_text(had)
    gpu.main(["--resume", "--only", "row-1", "--output", str(output)])
    document = json.loads(output.read_text())
    assert (ran[-1], document["rates"]) == ("row-1", {})
    assert document["rows"] == [{"tier": 1, "tokens": 1, "now": True}]
    with pytest.raises(SystemExit, match="2"):
        gpu.main(["--only", "row-x"])


def test_a_section_that_raises_leaves_its_error_and_what_it_knew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sections = types.ModuleType("sections_of_a_test")

    def broken(settings: Settings, number: int) -> dict[str, Any]:
        settings.note({"tier": number})
        raise RuntimeError("CUDA error\nout of memory")

    def sound(settings: Settings, _: int) -> dict[str, Any]:
        return {"before": settings.so_far.get("gradients")}

    sections.broken, sections.sound = broken, sound  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sections_of_a_test", sections)
    for kind, function in (("row", "broken"), ("gradients", "sound"), ("overlap", "sound")):
        monkeypatch.setitem(gpu_sections._MODULES, kind, ("sections_of_a_test", function))
    names = ["row-9", "gradients", "overlap"]
    gpu_sections.run_sections(names, Settings(), {}, tmp_path)
    found = [json.loads((tmp_path / f"{name}.json").read_text()) for name in names]
    assert found[0] == {"partial": {"tier": 9}, "error": "RuntimeError: out of memory"}
    assert found[1]["result"] == {"before": None}
    assert found[2]["result"] == {"before": {"before": None}}


def test_stock_that_runs_out_of_memory_is_said_and_streaming_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_large(*_: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Stock, "step", too_large)
    found = gpu_speed.measure(Settings(fast=True), 64)
    assert found["stock"] == {"error": "OutOfMemoryError: CUDA out of memory."}
    assert found["streaming"]["step_seconds"] > 0
    assert found["time_over_stock"] is None


def a_row(number: int, limits: Limits) -> RowPlan:
    tier = next(tier for tier in load_ladder() if tier.tier == number)
    vram_bytes, host_bytes = tier.reference_vram_bytes, limits.host_bytes
    machine = gpu_plans.row_machine(_CARD, vram_bytes, host_bytes, None, "")
    return gpu_plans.plan_row(model_by_id("qwen2.5-1.5b"), tier, machine, limits)


def test_every_row_has_a_plan_inside_its_cap() -> None:
    limits = Limits(200 * 2**30, 60.0, 600.0)
    for tier in load_ladder():
        row = a_row(tier.tier, limits)
        assert 0 < row.full.memory.device.total_bytes < row.machine.gpu_safe_bytes
        assert (row.layers == row.shape.layer_count) == (tier.tier <= 8)
        assert row.run.memory.host.total_bytes <= limits.host_bytes
        assert row.message.model.layer_count == row.layers


def test_depth_and_chunks_follow_from_time_and_host_memory() -> None:
    plenty = Limits(2**41, 60.0, 1e6)
    assert not a_row(8, plenty).is_reduced
    slow = a_row(8, replace(plenty, allowed_seconds=0.0))
    assert (3 <= slow.layers < 28, slow.sampled_chunks) == (True, 0)
    assert slow.run.cost.seconds <= 60.0
    slower = a_row(8, replace(plenty, allowed_seconds=0.0, row_seconds=5.0))
    assert slower.layers == 3
    assert 5 <= slower.sampled_chunks < slower.chunks
    assert slower.run.memory.chunk_tokens == slower.full.memory.chunk_tokens
    with pytest.raises(PlanRefused, match="bytes of host memory"):
        a_row(11, Limits(20 * 2**30, 60.0, 600.0))
    with pytest.raises(PlanRefused, match="Unheard Of"):
        gpu_plans.row_machine(replace(_CARD, name="NVIDIA Unheard Of"), 2**33, 2**36, None, "")


def stages_of(layers: int, interval: int, share: float = 1.0) -> tuple[Stages, float]:
    """Stages of a model with made-up times by layer, and what the step takes."""
    forward = [2.0] + [3.0] * (layers - 2)
    last, loss = 6.0, 9.0
    backward = [4.0] + [7.0] * (layers - 2)
    # By the layer whose output is made again: before the last layer of its segment.
    made_again = {layer - 1: 0.5 for layer in range(1, layers - 1) if layer % interval}
    stages = list(backward)
    for layer in made_again:
        stages[min(layer - layer % interval + interval, layers - 1) - 1] += 0.5
    seconds = [one * share for one in [*forward, last, *stages[::-1]]]
    seconds[len(forward)] += loss
    scaled = {layer: one * share for layer, one in made_again.items()}
    total = sum(forward) + last + loss + sum(stages) + 0.1 * layers
    return Stages(tuple(seconds), loss, 0.1 * layers, scaled, interval), total


@pytest.mark.parametrize("interval", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("layers", [3, 4, 6])
def test_a_step_of_few_layers_tells_that_of_all(layers: int, interval: int) -> None:
    few, _ = stages_of(layers, interval, share=0.25)
    _, whole = stages_of(28, interval)
    assert full_step_seconds(few, Share(chunks=4.0), 28) == pytest.approx(whole)


@pytest.mark.parametrize("count", [2, 5, 6, 8, 17])
def test_chunks_are_spread_around_the_middle(count: int) -> None:
    chunks = chunks_of(64 * 17, 64)
    places = [chunk.index for chunk in spread(chunks, count)]
    assert (places[0], places[-1], len(set(places))) == (0, 16, count)
    assert sum(places) / count == pytest.approx(8.0, abs=0.1)
    assert spread(chunks, 0) == chunks


def an_executor(
    make: Callable[[Any, StreamingSettings], StreamingExecutor],
) -> tuple[StreamingExecutor, Any, Any]:
    subject = speed.Subject.of(f"{FAST_MODEL}:3")
    setting = speed.Setting(ComputeDtype.FLOAT32, DeviceKind.CPU, 2**30, 1, chunk_tokens=16)
    plan = speed.plan_for(subject, 128, setting)
    model = StreamingOnDevice(subject.config, plan, torch.device("cpu")).model
    return make(model, StreamingSettings.of(plan)), random_window(plan), model


def test_the_sampled_executor_is_the_streaming_executor() -> None:
    plain, window_bs, model = an_executor(StreamingExecutor)
    sampled, _, other = an_executor(lambda m, s: SampledExecutor(m, s, 0))
    assert sampled.step(window_bs, 1.0) == plain.step(window_bs, 1.0)
    gradients = [[p.grad for p in trainable_parameters(one)] for one in (model, other)]
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_sampled_chunks_are_all_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled, window_bs, _ = an_executor(lambda m, s: SampledExecutor(m, s, 3))
    ran, call = set[int](), StreamingExecutor._call

    def note(self: Any, window: Any, layer: int, chunk: Chunk) -> Any:
        ran.add(chunk.index)
        return call(self, window, layer, chunk)

    monkeypatch.setattr(StreamingExecutor, "_call", note)
    assert math.isfinite(sampled.step(window_bs, 1.0))
    assert ran == {0, 4, 7}
    assert isinstance(sampled, SampledExecutor)
    assert sampled.share == Share(8 / 3, 3.0)


def test_a_profile_gives_overlap_and_idle_time_by_phase() -> None:
    cuda, cpu = DeviceType.CUDA, DeviceType.CPU
    rows = (
        ("bench-phase: forward", 0, 10, cpu), ("bench-phase: forward", 1, 9, cuda),
        ("bench-phase: backward", 10, 20, cpu), ("aten::mm", 0, 20, cpu), ("gemm", 1, 4, cuda),
        ("Memcpy DtoD (Device -> Device)", 4, 6, cuda), ("gemm", 12, 20, cuda),
        ("Memcpy HtoD (Pinned -> Device)", 5, 8, cuda),
        ("Memcpy DtoH (Device -> Pinned)", 11, 13, cuda),
    )  # fmt: skip
    events = []
    for name, begin, end, device in rows:
        span = SimpleNamespace(start=begin * 1e6, end=end * 1e6)
        events.append(SimpleNamespace(name=name, time_range=span, device_type=device))
    found = summary(*_timeline(SimpleNamespace(events=lambda: events)))
    assert found["overlap"] == pytest.approx({"to_device": 1 / 3, "to_host": 1 / 2, "both": 2 / 5})
    forward, backward = found["phases"]["forward"], found["phases"]["backward"]
    assert (forward["kernels_seconds"], forward["idle_seconds"]) == pytest.approx((5, 3))
    assert (backward["to_host_seconds"], backward["idle_seconds"]) == pytest.approx((2, 1))
    assert summary({}, {"kernels": [(0.0, 1.0)], "to_host": []})["overlap"]["both"] is None


def test_goals_are_met_only_by_what_was_measured() -> None:
    assert {goal["met"] for goal in goals({}).values()} == {None}
    document: dict[str, Any] = {"environment": {"compute_capability": "9.0"}}
    row = {"inside_cap": True, "inside_vram": True, "allocation_retries": 0}
    put_result(document, "row-8", {"tier": 8, "model_flops_utilisation": 0.6} | row, 1.0)
    ratios = [{"error_over_stock": 1.6}, {"error_over_stock": None}]
    put_result(document, "gradients", {"streaming": ratios}, 1.0)
    met = {name: goal["met"] for name, goal in document["goals"].items()}
    assert met.pop("gradient_error_over_stock") is False
    assert set(met.values()) == {True}
    put_failure(document, "row-9", "OutOfMemoryError")
    assert document["goals"]["rows_not_inside_their_cap"]["met"] is False
    put_result(document, "row-9", {"tier": 9} | row | {"allocation_retries": 2}, 1.0)
    assert document["goals"]["rows_not_inside_their_cap"]["met"] is True
    assert document["goals"]["allocation_retries"]["met"] is False
    document["environment"]["compute_capability"] = "8.6"
    assert goals(document)["model_flops_utilisation_at_tier_8"]["met"] is None


def test_a_row_is_planned_for_its_card_and_told_by_what_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def run_row(row: RowPlan, config: Any, _: Any, cap_bytes: int, note: Any) -> Ran:
        asked.append((config["num_hidden_layers"], cap_bytes))
        peaks = gpu_device.Peaks(row.run.memory.device.total_bytes // 2, cap_bytes)
        stages = Stages(tuple([1.0] * (2 * row.layers - 1)), 0.5, 0.0, {})
        ran = Ran("sdpa_flash", samples=[50.0], stages=stages, load_peaks=peaks, step_peaks=peaks)
        ran.allocation_retries, ran.outside_bytes = 0, _CARD.context_bytes
        note(ran)
        return ran

    monkeypatch.setattr(gpu_rows, "run_row", run_row)
    monkeypatch.setattr(gpu_device, "describe", lambda _: _CARD)
    stress = {"matmul_16bit_flops_per_second": 8e14, "memory_bandwidth_bytes_per_second": 4e12}
    rates = {"matmul_peak_flops_per_second": 8e14}
    so_far = {"rates": rates | {"measurements": stress | {"attention_rates": [
        {"sequence_tokens": 4096, "flops_per_second": 8e14}
    ]}}}  # fmt: skip
    settings = Settings(host_memory_bytes=2**41, allowed_seconds=1e6, so_far=so_far)
    found = gpu_rows.measure(settings, 8)
    assert asked == [(28, 8 * 10**9 - _CARD.context_bytes)]
    assert (found["inside_cap"], found["inside_vram"]) == (True, True)
    held = found["planned_bytes"] // 2 - _CARD.workspace_bytes
    assert found["error_percent"] == pytest.approx(100 * (found["planned_bytes"] / held - 1))
    assert found["tokens_per_second"] == pytest.approx(589_824 / 50)
    assert found["model_flops_utilisation"] == pytest.approx(found["model_flops"] / 50 / 8e14)
    reduced = gpu_rows.measure(replace(settings, allowed_seconds=0.0, row_seconds=40.0), 8)
    assert asked[1][0] == reduced["layers"] < 28
    assert asked[1][1] < asked[0][1]
    assert reduced["extrapolated_step_seconds"] == pytest.approx(55.0)
    by_table = found["planned_step_seconds_by_card_table"]
    assert by_table > 0
    assert by_table != found["planned_step_seconds"]
