"""The time model: FLOPs, rates, transfers, bounds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from services.planner.adapters import Adapters
from services.planner.cost import FORMULAS, StepCost
from services.planner.evaluation import evaluate
from services.planner.ladder import Tier
from services.planner.machine import ComputeDtype, DeviceKind, Machine
from services.planner.memory import Sizing
from services.planner.models import model_by_id
from services.planner.options import BasePrecision, Executor, OptimizationSet, Place, Policy
from services.planner.rates import AttentionRates, ElementwiseRates, RateCurve
from services.planner.time_terms import time_terms
from services.trainer.engine.streaming.blocks import BlockShape, causal_blocks
from tests.support.machines import machine
from tests.unit.planner.test_memory import FRUGAL, PLAIN, TIER

MODEL = model_by_id("qwen2.5-1.5b")
STREAMED = replace(
    PLAIN, executor=Executor.STREAMING, layer_inputs=Place.HOST, hidden_gradients=Place.HOST
)


def cost(chosen: OptimizationSet, tier: Tier = TIER) -> StepCost:
    return evaluate(tier, chosen, MODEL, machine()).cost


def machine_with(**changed: Any) -> Machine:
    """The machine with some of its rates changed, in every dtype."""
    plain = machine()
    rates = {size: replace(one, **changed) for size, one in plain.rates.by_element_bytes.items()}
    return replace(plain, rates=replace(plain.rates, by_element_bytes=rates))


def test_linear_work_is_six_per_weight_with_recompute_and_four_without() -> None:
    # Adapters of rank 8 take as long as those of rank 16, where thin products were measured.
    adapters = MODEL.lora_parameters(16) / 16 / 800e9
    per_weight = MODEL.linear_weights / 50e12
    # Nothing asks for gradients of the embeddings, which queries, keys and values are made of.
    embeddings = 2 * MODEL.hidden_size * (MODEL.query_width + 2 * MODEL.key_value_width) / 50e12
    expected = TIER.tokens * (6 * per_weight - embeddings + 8 * adapters)
    assert cost(PLAIN).lines["linear"] == pytest.approx(expected)
    without = replace(PLAIN, policy=Policy.KEEP_ALL)
    expected = TIER.tokens * (4 * per_weight - embeddings + 6 * adapters)
    assert cost(without).lines["linear"] == pytest.approx(expected)


def test_attention_work_grows_with_the_square_and_kept_outputs_spare_a_forward() -> None:
    once = cost(PLAIN).lines["attention"]
    assert once == pytest.approx(28 * 2 * 1536 * 4608**2 * 4.5 / 30e12)
    twice = Tier(1, 2 * TIER.context_tokens, 2 * TIER.target_tokens, 8)
    assert cost(PLAIN, twice).lines["attention"] == pytest.approx(4 * once)
    kept = replace(STREAMED, policy=Policy.SELECTIVE, attention_outputs=Place.HOST)
    assert cost(kept).lines["attention"] == pytest.approx(once * 3.5 / 4.5)


@pytest.mark.parametrize(
    ("size", "rate"), [(512, 20e12), (1024, 20e12), (2048, 25e12), (4096, 30e12), (10**6, 30e12)]
)
def test_a_rate_is_interpolated_by_the_logarithm_and_clamped(size: int, rate: float) -> None:
    curve = RateCurve.of([(4096.0, 30e12), (1024.0, 20e12)])
    assert curve.at(size) == pytest.approx(rate)
    assert curve.at(np.array([size]))[0] == pytest.approx(rate)


def test_fp32_runs_at_fp32_rates() -> None:
    half, single = cost(PLAIN).lines, cost(replace(PLAIN, dtype=ComputeDtype.FLOAT32)).lines
    assert single["linear"] > 4 * half["linear"]
    assert single["attention"] == half["attention"]


def test_the_resident_executor_waits_for_its_copies() -> None:
    everything = cost(replace(FRUGAL, layer_inputs=Place.HOST))
    assert set(everything.lines) == set(FORMULAS)
    moved = 28 * 4608 * 1536 * 2
    assert everything.lines["transfer"] == pytest.approx(2 * moved / 20e9)
    assert everything.lines["disk"] == 0
    assert everything.seconds == pytest.approx(sum(everything.lines.values()))


def test_the_streaming_executor_hides_copies_behind_kernels() -> None:
    """All but those of a layer's first and last page."""
    whole, many = (
        evaluate(TIER, STREAMED, MODEL, machine(), Sizing(chunk_tokens=chunk)).cost.lines
        for chunk in (TIER.tokens, TIER.tokens // 16)
    )
    assert whole["transfer"] == pytest.approx(8 * many["transfer"])
    slow = replace(machine().rates, host_to_device=1e6, device_to_host=1e6)
    found = evaluate(TIER, STREAMED, MODEL, replace(machine(), rates=slow)).cost
    assert found.lines["transfer"] > 100
    assert found.seconds == pytest.approx(sum(found.lines.values()))


def test_what_goes_to_disk_is_written_once_and_counted() -> None:
    on_disk = cost(replace(STREAMED, layer_inputs=Place.DISK))
    assert on_disk.disk_written_bytes == 26 * 4608 * 1536 * 2
    assert cost(STREAMED).disk_written_bytes == 0


@pytest.mark.parametrize("chosen", [PLAIN, FRUGAL, STREAMED])
def test_the_expected_time_lies_between_its_bounds(chosen: OptimizationSet) -> None:
    found = cost(chosen)
    assert 0 < found.low < found.seconds < found.high


def test_every_product_of_every_chunk_costs_its_overhead() -> None:
    plain, slow = machine(), machine_with(operation_overhead_seconds=1e-4)
    seconds = []
    for chunk in (512, 1024):
        with_it, without = (
            evaluate(TIER, STREAMED, MODEL, one, Sizing(chunk_tokens=chunk)).cost.lines["linear"]
            for one in (slow, plain)
        )
        # Seven weights, forward twice and backward once; each adapter twice a forward, four times
        # backward. The last layer makes only keys of what has no targets.
        layers = (with_it - without) / ((7 * 3 + 7 * 2 * 2 + 7 * 4) * 1e-4) * chunk / TIER.tokens
        assert MODEL.layer_count - 1 < layers <= MODEL.layer_count
        seconds.append(with_it - without)
    assert seconds[0] == pytest.approx(2 * seconds[1], rel=0.01)


def test_small_tensors_take_as_long_as_they_do() -> None:
    by_size = RateCurve.of([(2.0**16, 1e9), (2.0**30, 1e12)])
    by_size_machine = machine_with(elementwise=ElementwiseRates(by_size, by_size))
    short, long = (
        evaluate(TIER, STREAMED, MODEL, by_size_machine, Sizing(chunk_tokens=chunk))
        for chunk in (256, 4096)
    )
    assert short.cost.lines["elementwise"] > 1.2 * long.cost.lines["elementwise"]


def test_large_results_cost_their_pages_where_memory_is_new() -> None:
    there, new = (RateCurve(((1.0, rate),)) for rate in (1e10, 5e9))
    with_faults = machine_with(elementwise=ElementwiseRates(there, new))
    without = machine_with(elementwise=ElementwiseRates(there, there))

    def faults(chosen: OptimizationSet, tokens: int, chunk: int = 0) -> float:
        tier = replace(TIER, context_tokens=tokens - TIER.target_tokens)
        found, plain = (
            evaluate(tier, chosen, MODEL, one, Sizing(chunk_tokens=chunk)).cost.lines["elementwise"]
            for one in (with_faults, without)
        )
        return found - plain

    # 1 MiB and more of a window's results; none of those of short ones, nor of a chunk's.
    shortest = 2**20 // (2 * MODEL.intermediate_size)
    assert faults(PLAIN, shortest - 1) == 0
    assert faults(PLAIN, shortest + 1) > 0
    assert faults(STREAMED, 8192, chunk=1024) == 0
    every = time_terms(MODEL, PLAIN, Adapters(), without.rates).written.values()
    written = sum(2 * forward + backward for forward, backward in every)
    assert faults(PLAIN, 2**16) == pytest.approx(
        2**16 * MODEL.layer_count * written * (3 / 5e9 - 3 / 1e10)
    )


def test_logits_cost_their_pages_too() -> None:
    there, new = (RateCurve(((1.0, rate),)) for rate in (1e10, 5e9))
    seconds = {}
    for name, rates in (("there", (there, there)), ("new", (there, new))):
        one = machine_with(elementwise=ElementwiseRates(*rates))
        for rows in (1, 64):
            found = evaluate(TIER, STREAMED, MODEL, one, Sizing(chunk_tokens=1024, tile_rows=rows))
            seconds[name, rows] = found.cost.lines["loss"]
    assert seconds["new", 1] == seconds["there", 1]
    # In 16 bits and in fp32, and their gradient in 16 bits.
    pages = 8 * MODEL.vocabulary_size * TIER.target_tokens * (3 / 5e9 - 3 / 1e10)
    assert seconds["new", 64] - seconds["there", 64] == pytest.approx(pages)


def attending_at(triangles: float, blocks: float) -> Machine:
    """Attention at one rate in causal triangles and at another in blocks, both ways."""
    causal, every_pair = ({128: RateCurve(((1.0, rate),))} for rate in (triangles, blocks))
    rates = AttentionRates(causal, causal, every_pair, every_pair)
    return machine_with(attention_rates={"": rates})


def pairs_of(shapes: set[BlockShape], begin: int, chunk: int, window: int | None) -> int:
    """Twice the pairs that chunks from token `begin` on do in blocks of these shapes."""
    found = 0
    for first in range(begin, TIER.tokens, chunk):
        end = min(first + chunk, TIER.tokens)
        for block in causal_blocks(first, end, window, longest=TIER.tokens):
            queries, keys = block.query_end - block.query_begin, block.key_end - block.key_begin
            if block.shape in shapes:
                found += queries * keys * (2 if block.shape is BlockShape.FULL else 1)
    return found


FULL, WINDOWED = (False,), (True,)


@pytest.mark.parametrize(
    "windowed",
    [FULL * MODEL.layer_count, WINDOWED * 20 + FULL * (MODEL.layer_count - 20),
     FULL * (MODEL.layer_count - 5) + WINDOWED * 5, WINDOWED * MODEL.layer_count],
    ids=["none", "first", "last", "all"],
)  # fmt: skip
@pytest.mark.parametrize("chunk", [512, 1536, 4608])
def test_chunks_attend_in_the_triangles_and_blocks_that_the_engine_makes(
    chunk: int, windowed: tuple[bool, ...]
) -> None:
    window = 1536
    model = replace(MODEL, sliding_window=window, windowed=windowed)
    without_targets = (TIER.context_tokens - 1) // chunk * chunk
    for shapes, device in (
        ({BlockShape.CAUSAL, BlockShape.REVERSED}, attending_at(1.0, math.inf)),
        ({BlockShape.FULL}, attending_at(math.inf, 1.0)),
    ):
        *layers, last = [window if has_window else None for has_window in windowed]
        # Forward twice and backward 2.5 times; of the last layer only what has targets, once.
        expected = sum(4.5 * pairs_of(shapes, 0, chunk, width) for width in layers)
        expected += 3.5 * pairs_of(shapes, without_targets, chunk, last)
        found = evaluate(TIER, STREAMED, model, device, Sizing(chunk_tokens=chunk)).cost
        assert found.lines["attention"] == pytest.approx(2 * 1536 * expected, rel=0.005)


def test_without_rates_of_blocks_attention_runs_at_the_window_s() -> None:
    both_alike = evaluate(TIER, STREAMED, MODEL, attending_at(30e12, 30e12)).cost
    assert cost(STREAMED).lines["attention"] == pytest.approx(both_alike.lines["attention"])


def test_element_wise_operations_cost_their_overhead_by_the_chunk() -> None:
    plain, slow = machine(), machine_with(operation_overhead_seconds=1e-4)
    extra = []
    for chunk in (512, 1024):
        slow_seconds, seconds = (
            evaluate(TIER, STREAMED, MODEL, one, Sizing(chunk_tokens=chunk)).cost
            .lines["elementwise"] for one in (slow, plain)
        )  # fmt: skip
        extra.append(slow_seconds - seconds)
    assert extra[0] == pytest.approx(2 * extra[1], rel=0.01)
    # The scale of each of seven adapters, two norms of six, two residuals, a rotary embedding of
    # eight, an activation and its product: twice forward and, twice as many, once backward.
    layers = extra[0] / ((7 + 2 * 6 + 2 + 2 * 4 + 2) * 4 * 1e-4) * 512 / TIER.tokens
    assert MODEL.layer_count - 1 < layers <= MODEL.layer_count


def test_a_cpu_computes_in_the_thread_that_asks() -> None:
    """What is launch time on a GPU outlasts its kernels or hides; on a CPU it is added."""
    plain = replace(machine(), device_kind=DeviceKind.CPU)
    asked = replace(plain, rates=replace(plain.rates, launch_seconds=1e-6))
    costs = [evaluate(TIER, PLAIN, MODEL, one, Sizing()).cost for one in (plain, asked)]
    # Two forwards and a backward of every layer; adapters are scaled and added by themselves.
    launches = 3 * MODEL.layer_count * 4 * (7 + 14 + 31 + 7) * 1e-6
    assert costs[1].lines["launch"] == pytest.approx(launches)
    assert costs[1].seconds - costs[0].seconds == pytest.approx(launches)
    on_gpu = replace(asked, device_kind=DeviceKind.CUDA)
    assert evaluate(TIER, PLAIN, MODEL, on_gpu, Sizing()).cost.lines["launch"] == 0


def attention_seconds(chosen: OptimizationSet, device: Machine, threads: int, chunk: int) -> float:
    one = replace(device, rates=replace(device.rates, threads=threads))
    found = evaluate(TIER, chosen, MODEL, one, Sizing(chunk_tokens=chunk))
    return float(found.cost.lines["attention"])


def test_threads_that_get_no_head_wait_for_the_others_in_a_cpus_backward() -> None:
    assert MODEL.key_value_head_count == 2
    device = machine()
    even, uneven = (attention_seconds(PLAIN, device, threads, 0) for threads in (2, 3))
    assert even == attention_seconds(PLAIN, device, 0, 0)
    # A backward takes as long as one with three heads; a forward is shared by blocks of queries.
    assert even < uneven < even * 3 / 2
    assert attention_seconds(PLAIN, device, 8, 0) - even == pytest.approx(6 * (uneven - even))


def test_chunks_are_cut_for_threads_that_would_get_no_head() -> None:
    """But for the triangle of a chunk's own keys, and chunks that are too short for it."""
    device = attending_at(30e12, 20e12)
    none, cut = (attention_seconds(STREAMED, device, threads, 1024) for threads in (0, 4))
    assert none == attention_seconds(STREAMED, device, 2, 1024)
    triangles = 1024 / TIER.tokens
    assert none * (1 + triangles / 4) < cut < none * (1 + triangles)
    short = [attention_seconds(STREAMED, device, threads, 256) for threads in (0, 4)]
    assert short[1] > 1.5 * short[0]


def test_short_kernels_wait_for_python() -> None:
    """Four operations of torch for each that moves data: 7 products, 14 thin ones, 31 others."""
    slow = replace(machine(), rates=replace(machine().rates, launch_seconds=1e-3))
    for chunk, chunks in ((TIER.tokens, 1), (TIER.tokens // 8, 8)):
        found = evaluate(TIER, STREAMED, MODEL, slow, Sizing(chunk_tokens=chunk)).cost
        launches = found.seconds - found.lines["transfer"]
        # Forward, recompute, backward, and half of one for the keys; the last layer less of them.
        passes = launches / (4 * (7 + 14 + 31) * 1e-3) / chunks
        assert 3.5 * (MODEL.layer_count - 1) < passes <= 3.5 * MODEL.layer_count
        kernels = evaluate(TIER, STREAMED, MODEL, machine(), Sizing(chunk_tokens=chunk)).cost
        assert found.lines["launch"] == pytest.approx(launches - kernels.seconds, rel=0.05)
    assert kernels.lines["launch"] == 0


def test_blocks_that_are_put_together_take_time() -> None:
    """Keys in pages: a block for every earlier chunk, and on a GPU shorter than the measured."""

    def others(chosen: OptimizationSet, chunk: int) -> float:
        found = evaluate(TIER, chosen, MODEL, machine(), Sizing(chunk_tokens=chunk))
        return float(found.cost.lines["elementwise"])

    paged = replace(STREAMED, key_values=Place.HOST, kept_keys=Place.NOWHERE)
    here = replace(STREAMED, kept_keys=Place.NOWHERE)
    assert others(paged, TIER.tokens) == others(here, TIER.tokens)
    assert others(paged, 512) > others(here, 512)
    assert others(paged, 512) - others(here, 512) > others(paged, 1024) - others(here, 1024)


@pytest.mark.parametrize(
    ("chosen", "adapters", "passes"),
    [
        (STREAMED, Adapters(), 1),  # added in place
        (STREAMED, Adapters(float32=True), 5),
        (replace(STREAMED, dtype=ComputeDtype.FLOAT32), Adapters(float32=True), 1),
        (PLAIN, Adapters(), 5),
    ],
)
def test_adapters_add_in_place_where_the_engine_does(
    chosen: OptimizationSet, adapters: Adapters, passes: int
) -> None:
    rates = machine().rates
    none = replace(adapters, target_modules=("none of these",))
    with_them, without = (
        sum(time_terms(MODEL, chosen, one, rates).elementwise_traffic.values())
        for one in (adapters, none)
    )
    outputs = sum(linear.outputs for linear in MODEL.linears)
    expected = passes * chosen.dtype.element_bytes * outputs
    assert with_them - without == pytest.approx(expected)


@pytest.mark.parametrize(("adamw_8bit", "states"), [(False, 8), (True, 2)])
def test_the_optimizer_moves_parameters_gradients_and_states(adamw_8bit: bool, states: int) -> None:
    """Parameters read and written, gradients read twice, both states read and written."""
    moved = MODEL.lora_parameters(TIER.lora_rank) * (4 * 2 + 2 * states)
    found = cost(replace(PLAIN, adamw_8bit=adamw_8bit)).lines["optimizer"]
    assert found == pytest.approx(moved / machine().rates.memory_bandwidth)


@pytest.mark.parametrize("chunks", [1, 4])
def test_every_pass_makes_bf16_weights_of_nf4(chunks: int) -> None:
    """But for the last linear of layers that are run again, which nothing reads."""
    chosen, layers = replace(STREAMED, base_precision=BasePrecision.NF4), MODEL.layer_count
    passes = 3 * (layers - 1) + 2
    weights = passes * MODEL.layer_linear_weights
    weights -= (layers - 1) * MODEL.intermediate_size * MODEL.hidden_size
    # The last layer goes through the loss and back only in chunks that have targets.
    idle = 0 if chunks == 1 else 2 * MODEL.layer_linear_weights * (1 - 1 / chunks)
    expected = chunks * (weights - idle) * (0.5156 + 2) / machine().rates.memory_bandwidth
    sizing = Sizing(chunk_tokens=TIER.tokens // chunks)
    found = evaluate(TIER, chosen, MODEL, machine(), sizing).cost.lines["dequantisation"]
    assert found == pytest.approx(expected, rel=0.01)


def test_streamed_weights_cross_once_a_pass_but_for_those_still_there() -> None:
    chosen = replace(PLAIN, executor=Executor.STREAMING, weights=Place.HOST)
    slow = replace(machine(), rates=replace(machine().rates, host_to_device=1e6))
    layer_bytes = 2 * MODEL.layer_parameters
    found = evaluate(TIER, chosen, MODEL, slow).cost
    assert found.seconds == pytest.approx(2 * (MODEL.layer_count - 2) * layer_bytes / 1e6)
