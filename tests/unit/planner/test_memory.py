"""The memory model: phases, lines, and what moves them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.engine_process import SLAB_BYTES
from services.planner.evaluation import evaluate
from services.planner.ladder import Tier, load_ladder
from services.planner.machine import ComputeDtype
from services.planner.memory import FORMULAS, LINES, RunMemory
from services.planner.models import ModelShape, model_by_id
from services.planner.options import BasePrecision, Executor, OptimizationSet, Place, Policy
from services.planner.static_memory import NF4_BYTES_PER_WEIGHT
from tests.support.machines import machine

TIER = Tier(tier=1, context_tokens=4096, target_tokens=512, lora_rank=8)
FRUGAL = OptimizationSet(
    base_precision=BasePrecision.NF4,
    dtype=ComputeDtype.BFLOAT16,
    adamw_8bit=True,
    tiled_loss=True,
    attention_kernel="sdpa_flash",
)
PLAIN = replace(FRUGAL, base_precision=BasePrecision.FULL, adamw_8bit=False)


def memory(
    model_id: str, chosen: OptimizationSet, tier: Tier = TIER, *, on_cpu: bool = False
) -> RunMemory:
    return evaluate(tier, chosen, model_by_id(model_id), machine(on_cpu=on_cpu)).memory


@pytest.mark.parametrize("model_id", ["phi-2", "qwen2.5-1.5b", "gemma-3-1b", "starcoder2-3b"])
@pytest.mark.parametrize("chosen", [FRUGAL, PLAIN, replace(PLAIN, policy=Policy.KEEP_ALL)])
def test_lines_sum_to_the_peak_phase(model_id: str, chosen: OptimizationSet) -> None:
    taken = memory(model_id, chosen)
    for estimate in (taken.device, taken.host, taken.disk):
        assert sum(estimate.lines.values()) == estimate.total_bytes
        assert estimate.total_bytes == max(estimate.phases.values())
        assert tuple(estimate.lines) == LINES
        assert all(size >= 0 for size in estimate.lines.values())
    assert set(FORMULAS) == set(LINES)


def test_the_worked_example_of_the_reference_page() -> None:
    """Qwen2.5-1.5B, 4 608 tokens, rank 8, 16 bit: docs/reference/memory-model.md."""
    taken = memory("qwen2.5-1.5b", replace(PLAIN, adamw_8bit=True)).device
    assert taken.peak_phase == "backward"
    assert taken.lines["base_model"] == 2 * 1_543_714_304
    assert taken.lines["lora"] == 2 * 9_232_384
    layers = 28 * 2 * 1536
    working = 12 * 8960 + (12 + 2) * 1536 + 4 * 1536 + 4 * 256 + 4 * 12 + 12 * 8 + 8
    assert taken.lines["kv"] == 4608 * 4 * 256
    assert taken.lines["activations"] + taken.lines["kv"] == 4608 * (layers + working)
    assert taken.lines["gradients"] == 2 * 9_232_384 // 28
    assert taken.lines["buffers"] == 4608 * (16 + 2 * 2 * 128)


def test_nf4_quantises_the_decoder_linears_only() -> None:
    model = model_by_id("llama-2-7b")
    assert model.linear_weights == 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert pytest.approx(0.5159, abs=1e-4) == NF4_BYTES_PER_WEIGHT
    rest = model.parameter_count - model.linear_weights
    assert memory("llama-2-7b", FRUGAL).device.lines["base_model"] == pytest.approx(
        0.5159 * model.linear_weights + 2 * rest, rel=1e-4
    )


def test_small_tensors_keep_full_optimizer_states() -> None:
    eight_bit = replace(PLAIN, adamw_8bit=True)
    rank_two = replace(TIER, lora_rank=2)
    model = model_by_id("smollm2-135m")
    states = memory("smollm2-135m", eight_bit, rank_two).device.lines["optimizer"]
    # 576 x 2 is below 4096 elements; so is every adapter but none reaches it: 1536 x 2 = 3072.
    assert states == 8 * model.lora_parameters(2)
    large = memory("llama-2-7b", eight_bit).device.lines["optimizer"]
    assert large == pytest.approx(2.03 * model_by_id("llama-2-7b").lora_parameters(8), rel=1e-3)


def test_fp32_doubles_weights_and_nearly_doubles_activations() -> None:
    half = memory("llama-3.2-1b", PLAIN).device.lines
    single = memory("llama-3.2-1b", replace(PLAIN, dtype=ComputeDtype.FLOAT32)).device.lines
    assert single["base_model"] == 2 * half["base_model"]
    assert 1.7 < single["activations"] / half["activations"] < 2.0


def test_layer_inputs_on_the_host_are_pinned_pages() -> None:
    model = model_by_id("llama-3.2-1b")
    device, host = (
        memory("llama-3.2-1b", FRUGAL),
        memory("llama-3.2-1b", replace(FRUGAL, layer_inputs=Place.HOST)),
    )
    one = 4608 * 2 * model.hidden_size
    pinned = 16 * 2 ** (one - 1).bit_length()
    assert host.host.phases["backward"] == machine().process_overhead_bytes + pinned
    assert device.device.total_bytes > host.device.total_bytes


@pytest.mark.parametrize(("vocabulary", "largest"), [(32_000, 32_000 * 4096), (1000, 11008 * 4096)])
def test_weights_pass_through_the_host_one_by_one(vocabulary: int, largest: int) -> None:
    """The embeddings, or a linear of the MLP."""
    model = replace(model_by_id("llama-2-7b"), vocabulary_size=vocabulary)
    for chosen in (PLAIN, FRUGAL, replace(PLAIN, dtype=ComputeDtype.FLOAT32)):
        host = evaluate(TIER, chosen, model, machine()).memory.host
        assert host.peak_phase == "load"
        assert host.lines["base_model"] == chosen.dtype.element_bytes * largest
        assert host.total_bytes == host.lines["base_model"] + machine().process_overhead_bytes


def test_streamed_weights_are_on_the_host_beside_a_layer_on_its_way() -> None:
    model = model_by_id("llama-2-7b")
    streamed = replace(
        PLAIN, executor=Executor.STREAMING, policy=Policy.EVERY_LAYER, key_values=Place.DEVICE,
        weights=Place.HOST,
    )  # fmt: skip
    loading = memory("llama-2-7b", streamed).host.phases["load"]
    layers = 2 * model.layer_count * model.layer_parameters
    slabs = -(-layers // SLAB_BYTES) * SLAB_BYTES
    assert loading == machine().process_overhead_bytes + slabs + 2 * model.layer_parameters


def test_pooled_keys_and_values_are_made_on_the_host() -> None:
    model = model_by_id("phi-2")
    whole, pooled = (
        memory("phi-2", replace(PLAIN, key_value_heads=heads)).host.phases["load"]
        for heads in (0, 8)
    )
    assert pooled - whole == 4 * 2 * 32 * model.hidden_size * 8 * model.head_size


def test_a_device_in_host_memory_is_counted_on_the_host_too() -> None:
    taken = memory("smollm2-135m", PLAIN, on_cpu=True)
    overhead = machine(on_cpu=True).process_overhead_bytes
    assert taken.host.total_bytes == taken.device.total_bytes + overhead
    assert taken.host.lines["runtime"] == overhead
    assert taken.device.lines["runtime"] == 0


def test_the_loss_tile_does_not_make_the_peak() -> None:
    for tier in load_ladder():
        taken = memory("qwen2.5-0.5b", FRUGAL, tier)
        assert 64 <= taken.loss_tile_rows <= 1024
        assert taken.device.phases["loss"] <= taken.device.phases["backward"]
    untiled = memory("qwen2.5-0.5b", replace(FRUGAL, tiled_loss=False))
    assert untiled.loss_tile_rows == 512
    assert untiled.device.phases["loss"] > memory("qwen2.5-0.5b", FRUGAL).device.phases["loss"]


def test_keys_are_repeated_for_kernels_that_cannot_share_them() -> None:
    def working(model: ModelShape, kernel: str) -> int:
        chosen = replace(FRUGAL, attention_kernel=kernel)
        return evaluate(TIER, chosen, model, machine()).memory.device.total_bytes

    grouped, plain = model_by_id("llama-3.2-1b"), model_by_id("llama-2-7b")
    extra = working(grouped, "sdpa_efficient") - working(grouped, "sdpa_flash")
    assert extra == 4608 * 2 * 2 * (grouped.query_width - grouped.key_value_width)
    assert working(plain, "sdpa_efficient") == working(plain, "sdpa_flash")
