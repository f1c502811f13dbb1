"""The catalogue keeps its word: every applied row changes the plan it claims to change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.planner import options as o
from services.planner.catalogue import optimizations
from services.planner.evaluation import Candidate, evaluate
from services.planner.ladder import Tier
from services.planner.machine import ComputeDtype
from services.planner.models import ModelShape, model_by_id
from services.planner.options import BasePrecision, Codec, Executor, OptimizationSet, Place, Policy
from tests.support.machines import machine

TIER = Tier(tier=1, context_tokens=126976, target_tokens=4096, lora_rank=48)
PLAIN = OptimizationSet(
    base_precision=BasePrecision.FULL,
    dtype=ComputeDtype.BFLOAT16,
    attention_kernel="sdpa_flash",
    adamw_8bit=False,
)
STREAMED = replace(
    PLAIN,
    executor=Executor.STREAMING,
    layer_inputs=Place.HOST,
    hidden_gradients=Place.HOST,
)
GROUPED, FULL_HEADS = model_by_id("qwen2.5-1.5b"), model_by_id("phi-2")

# id: the set without it, the set with it, what the catalogue says it makes smaller.
CLAIMS: dict[str, tuple[OptimizationSet, OptimizationSet, str]] = {
    o.QLORA: (PLAIN, replace(PLAIN, base_precision=BasePrecision.NF4), "device"),
    o.MIXED_PRECISION: (replace(PLAIN, dtype=ComputeDtype.FLOAT32), PLAIN, "device"),
    o.FLASH_ATTENTION: (replace(PLAIN, attention_kernel="sdpa_efficient"), PLAIN, "device"),
    o.CHECKPOINTING: (replace(PLAIN, policy=Policy.KEEP_ALL), PLAIN, "device"),
    o.ADAMW_8BIT: (PLAIN, replace(PLAIN, adamw_8bit=True), "device"),
    o.TILED_LOSS: (replace(PLAIN, tiled_loss=False), PLAIN, "loss"),
    o.ACTIVATION_OFFLOAD: (PLAIN, replace(PLAIN, layer_inputs=Place.HOST), "device"),
    o.STREAMING: (PLAIN, replace(PLAIN, executor=Executor.STREAMING), "device"),
    o.SELECTIVE_CHECKPOINTING: (
        STREAMED,
        replace(STREAMED, policy=Policy.SELECTIVE, attention_outputs=Place.HOST),
        "time",
    ),
    o.SQRT_CHECKPOINTING: (STREAMED, replace(STREAMED, layer_input_interval=4), "host"),
    o.DISK_OFFLOAD: (STREAMED, replace(STREAMED, layer_inputs=Place.DISK), "host"),
    o.PAGED_ATTENTION: (STREAMED, replace(STREAMED, key_values=Place.HOST), "keys"),
    o.WEIGHT_STREAMING: (STREAMED, replace(STREAMED, weights=Place.HOST), "device"),
    o.ACTIVATIONS_8BIT: (STREAMED, replace(STREAMED, codec=Codec.INT8), "host"),
    o.ACTIVATIONS_4BIT: (STREAMED, replace(STREAMED, codec=Codec.NF4), "host"),
}
# Applied rows that are not switches of a set, and the tests that hold them to their word.
ELSEWHERE = {
    "attention-precision-factor": "tests/unit/planner/test_memory.py",
    "quantization-aware-accounting": "tests/unit/planner/test_memory.py",
    "grouped-query-attention": "test_fewer_key_heads_take_less",
    "one-cycle-schedule": "tests/unit/trainer/engine/test_optimizer.py",
    "validation-split": "tests/unit/trainer/engine/test_dataset.py",
    "checkpoint-pruning": "tests/unit/trainer/engine/test_checkpoint.py",
    "memory-mapped-dataset": "tests/unit/trainer/engine/test_dataset.py",
    "kernel-warm-up": "tests/unit/trainer/worker/test_progress.py",
    "memory-pool-preallocation": "tests/unit/trainer/engine",
    "expandable-segments": "tests/unit/trainer/worker",
    "sequence-packing": "tests/unit/trainer/engine/test_dataset.py",
}


def size(candidate: Candidate, what: str) -> float:
    memory = candidate.memory
    return {
        "device": memory.device.total_bytes,
        "host": memory.host.phases["backward"],
        "loss": memory.device.phases["loss"],
        "keys": memory.device.lines["kv"],
        "time": candidate.cost.seconds,
    }[what]


def evaluated(chosen: OptimizationSet, model: ModelShape = GROUPED) -> Candidate:
    return evaluate(TIER, chosen, model, machine())


@pytest.mark.parametrize("name", CLAIMS)
def test_a_row_shrinks_what_it_says(name: str) -> None:
    without, with_it, what = CLAIMS[name]
    assert name not in without.ids(GROUPED)
    assert name in with_it.ids(GROUPED)
    assert size(evaluated(with_it), what) < size(evaluated(without), what)
    assert optimizations()[name].status in ("applied", "offered")
    assert optimizations()[name].exact == (name not in with_it.lossy_ids)


def test_fewer_key_heads_take_less() -> None:
    heads = FULL_HEADS.convertible_key_value_heads
    converted = replace(STREAMED, key_value_heads=heads)
    assert heads == 4
    before, after = evaluated(STREAMED, FULL_HEADS), evaluated(converted, FULL_HEADS)
    assert after.memory.device.lines["kv"] * 8 == before.memory.device.lines["kv"]
    assert o.GROUPED_QUERY_CONVERSION in converted.ids(FULL_HEADS)
    assert o.GROUPED_QUERY_ATTENTION in converted.ids(FULL_HEADS)
    assert o.GROUPED_QUERY_ATTENTION not in STREAMED.ids(FULL_HEADS)


def test_every_applied_row_is_held_to_its_word() -> None:
    applied = {name for name, row in optimizations().items() if row.status == "applied"}
    assert applied <= set(CLAIMS) | set(ELSEWHERE)


def test_what_is_not_applied_says_why() -> None:
    for name, row in optimizations().items():
        if row.status != "applied":
            assert row.reason, name


def test_ids_are_not_broken_over_lines() -> None:
    for row in optimizations().values():
        assert "- " not in f"{row.description} {row.reason}".replace(" - ", " ")
