"""`python -m bench.ladder`: what it extends is what it would have measured."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from bench import ladder, oracle
from bench.ladder_measure import (
    CHUNKS,
    Extended,
    Usage,
    depths,
    extended,
    line,
    measure,
    shortened,
    windows,
)
from bench.ladder_plans import Planned, Subject, plan_row, plan_set, runtime_bytes, subjects
from elite.planner.v1 import planner_pb2
from services.planner.ladder import Tier, load_ladder
from services.planner.models import model_from_config
from services.planner.options import BasePrecision, OptimizationSet, Place
from services.trainer.engine import executors
from services.trainer.engine.streaming import stores
from services.trainer.engine.streaming.page_files import PageFile

CHUNK, LAYERS = 64, 5
TIERS = {tier.tier: tier for tier in load_ladder()}
KEYS_HERE, KEYS_ON_HOST = ladder.MODES.values()
ON_DISK = replace(KEYS_HERE, layer_inputs=Place.DISK, attention_outputs=Place.DISK)
CONFIG = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80,
    "num_hidden_layers": LAYERS, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip


def tiny(**changes: Any) -> Subject:
    config = CONFIG | changes
    return Subject("tiny", model_from_config(json.dumps(config)), config)


def tiny_plan(chosen: OptimizationSet = KEYS_HERE, tokens: int = 6 * CHUNK + 20) -> Planned:
    tier = Tier(0, tokens - 30, 30, lora_rank=3)
    return plan_set(tiny(), tier, chosen, CHUNK)


def row_plan(name: str, tier: int) -> Planned:
    planned = plan_row(subjects()[name], TIERS[tier])
    assert isinstance(planned, Planned)
    return planned


@pytest.mark.parametrize(
    "chosen",
    [
        ON_DISK,
        replace(KEYS_ON_HOST, weights=Place.HOST),
        replace(KEYS_HERE, layer_inputs=Place.DEVICE, attention_outputs=Place.DEVICE),
    ],
    ids=["disk", "keys and weights on the host", "device"],
)
def test_what_is_extended_is_what_the_whole_step_takes(chosen: OptimizationSet) -> None:
    planned = tiny_plan(chosen)
    found = extended(planned, fake=False)
    assert max(found.layers) < LAYERS
    assert max(found.tokens) < planned.tier.tokens
    assert found.usage == measure(planned, LAYERS, planned.tier.tokens, fake=False)


def test_a_third_depth_of_a_real_row_is_on_the_line_of_two() -> None:
    planned = row_plan("qwen2.5-1.5b", 4)
    assert planned.chosen.weights is Place.DEVICE
    chunk, static = planned.candidate.memory.chunk_tokens, planned.static()
    three, four, five = (measure(planned, depth, 2 * chunk) for depth in (3, 4, 5))
    assert line({3: three, 4: four}, 5) == five
    # What the plan computes, and rotary frequencies.
    beyond = line({3: three, 4: four}, 28).static_bytes - int(static.base_model + static.lora)
    assert 0 <= beyond < 1024


def test_watching_the_stages_changes_nothing() -> None:
    planned, config = tiny_plan(tokens=3 * CHUNK), AutoConfig.for_model(**CONFIG)
    found = oracle.measure_step(config, planned.message, fake=False)
    watched = measure(planned, LAYERS, planned.tier.tokens, fake=False)
    assert watched.static_bytes == found.static_bytes
    assert watched.static_bytes + watched.working_bytes == found.peak_bytes
    assert watched.stores_bytes == found.host_bytes
    assert set(watched.phases) == {"forward", "last_layer", "backward"}
    assert min(watched.phases.values()) < watched.working_bytes


def test_fake_tensors_take_what_real_ones_take() -> None:
    planned = tiny_plan(ON_DISK, tokens=3 * CHUNK)
    fake, real = (measure(planned, 2, 3 * CHUNK, fake=fake) for fake in (True, False))
    assert fake == real


def test_page_files_are_as_large_as_the_engine_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Weighed(PageFile):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            sizes.append(os.fstat(self._file).st_size)

    planned = tiny_plan(ON_DISK, tokens=2 * CHUNK)
    monkeypatch.setattr(stores, "PageFile", Weighed)
    monkeypatch.setattr(
        oracle, "make_executor",
        lambda model, plan: executors.make_executor(model, plan, page_folder=tmp_path),
    )  # fmt: skip
    oracle.measure_step(AutoConfig.for_model(**CONFIG), planned.message, fake=False)
    monkeypatch.undo()
    assert sizes
    assert measure(planned, LAYERS, 2 * CHUNK, fake=False).disk_bytes == sum(sizes)
    assert planned.candidate.memory.disk.total_bytes > sum(sizes)  # a checkpoint goes there too


@pytest.mark.parametrize(
    ("mode", "expected"), [("keys on the device", 12 * 2 * 8), ("keys on the host", 0)]
)
def test_nothing_but_the_keys_at_work_grows_with_the_window(mode: str, expected: int) -> None:
    row = ladder.growth_row(tiny(), mode, CHUNK, layers=1)
    assert row["measured_bytes_per_token"] == row["expected_bytes_per_token"] == expected


@pytest.mark.parametrize(
    ("name", "width"),
    [("phi-2", 32 * 80), ("phi-2 grouped-query", 4 * 80), ("qwen2.5-1.5b", 2 * 128)],
)
def test_the_models_of_the_ladder_grow_by_their_keys(name: str, width: int) -> None:
    row = ladder.growth_row(subjects()[name], "keys on the device", layers=1)
    assert row["measured_bytes_per_token"] == row["expected_bytes_per_token"] == 12 * width


def test_a_short_window_has_the_chunks_of_the_row() -> None:
    planned = row_plan("phi-2 grouped-query", 11)
    tokens, chunk = planned.tier.tokens, planned.candidate.memory.chunk_tokens
    lengths = windows(planned)
    assert [-(-length // chunk) for length in lengths] == list(CHUNKS)
    assert {(tokens - length) % chunk for length in lengths} == {0}
    for length in lengths:
        small = shortened(planned.message, length)
        assert small.context_tokens + small.target_tokens == length
        assert small.target_tokens == 2 * chunk - 1 >= small.execution.loss_tile_rows
    few = tiny_plan()
    assert shortened(few.message, 3 * CHUNK + 20).target_tokens == 30
    assert shortened(few.message, few.tier.tokens) == few.message


def test_depths_end_a_segment_as_the_row_does() -> None:
    def found(layers: int, interval: int) -> tuple[int, ...]:
        chosen = replace(KEYS_HERE, layer_input_interval=interval)
        subject = tiny(num_hidden_layers=layers)
        return depths(plan_set(subject, Tier(0, 200, 30, 3), chosen, CHUNK))

    assert found(28, 1) == (3, 4)
    assert found(28, 4) == (8, 12)
    assert found(30, 4) == (6, 10)
    assert found(3, 1) == (3,)
    assert found(2, 1) == (2,)


def test_the_highest_stage_may_change_with_the_depth() -> None:
    points = {
        3: Usage(100, {"loss": 50, "backward between": 40}, 7, 0),
        4: Usage(110, {"loss": 50, "backward between": 45}, 9, 2),
    }
    far = line(points, 10)
    assert [points[n].working_bytes for n in (3, 4)] == [50, 50]
    assert far == Usage(170, {"loss": 50, "backward between": 75}, 21, 14)
    assert far.working_bytes == 75
    assert far.phases == {"loss": 50, "backward": 75}


def an_extended(working_bytes: int) -> Extended:
    return Extended(Usage(1, {"loss": working_bytes}, 5, 7), (3, 4), (8, 16))


def test_a_row_says_what_was_computed_and_whether_it_is_inside() -> None:
    planned = row_plan("qwen2.5-1.5b", 8)
    row = ladder.row_of(planned, an_extended(10**9))
    parts = ("weights", "adapters", "optimizer", "runtime", "dequantised")
    computed = sum(row[f"{name}_bytes"] for name in parts)
    assert row["device_bytes"] == computed + 10**9
    assert row["runtime_bytes"] == runtime_bytes() > 2**29
    assert row["inside"]
    assert row["vram_bytes"] == 8 * 10**9
    assert row["planned_device_bytes"] == sum(row["lines"].values())
    room = row["vram_bytes"] - computed
    assert ladder.row_of(planned, an_extended(room))["inside"]
    over = ladder.row_of(planned, an_extended(room + 1))
    assert not over["inside"]
    assert "OUTSIDE" in ladder.shown("rows", over)


def test_four_bit_weights_are_computed_and_one_of_them_made_again() -> None:
    chosen = replace(KEYS_HERE, base_precision=BasePrecision.NF4, weights=Place.HOST)
    planned = plan_set(subjects()["phi-2"], TIERS[1], chosen, chunk_tokens=512)
    row = ladder.row_of(planned, an_extended(10**8))
    assert row["measured_static_bytes"] is None
    assert row["dequantised_bytes"] == 2 * 2560 * 10240
    assert row["weights_bytes"] < planned.subject.shape.parameter_count
    small = shortened(planned.message, 1536)
    assert small.execution.weight_placement == planner_pb2.PLACEMENT_DEVICE


def test_every_row_has_a_plan_on_its_card() -> None:
    for subject in subjects().values():
        for tier in TIERS.values():
            planned = plan_row(subject, tier)
            assert isinstance(planned, Planned), (subject.name, tier.tier, planned)
            assert planned.chosen.key_value_heads == (4 if subject.converted else 0)
            assert planned.candidate.memory.device.peak_phase not in ("load", "optimizer")


def test_the_command_writes_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ladder, "MODES", {})
    small = replace(TIERS[1], reference_vram_bytes=10**9 + runtime_bytes() // 2)
    given = ["--models", "qwen2.5-1.5b", "--output", str(tmp_path / "ladder.json"), "--tiers"]
    assert ladder.main([*given, "1"]) == 0
    document = json.loads((tmp_path / "ladder.json").read_text())
    (row,) = document["rows"]
    assert row["tier"] == 1
    assert row["inside"]
    assert abs(row["error_percent"]) < 1
    assert abs(row["working_error_percent"]) < 2
    assert document["machine"]["cores"] >= 1
    assert document["assumed"]["host_memory_bytes"] == 2**40
    monkeypatch.setattr(ladder, "load_ladder", lambda: (small,))
    assert ladder.main([*given, "1"]) == 1
    (row,) = json.loads((tmp_path / "ladder.json").read_text())["rows"]
    assert row["device_bytes"] is None
    assert "fits no set: " in capsys.readouterr().out
