"""What one model costs on one machine, by the token: what the formulas of time read.

Times of products and attention are in seconds; element-wise work is in bytes, since its rate
depends on how long a chunk is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from services.common.attention_threads import busy_share, query_pieces
from services.planner.adapters import Adapters
from services.planner.architectures import Mlp, Norm, QueryKeyNorm
from services.planner.arithmetic import Number
from services.planner.attention_kernels import key_chunks
from services.planner.models import Linear, ModelShape
from services.planner.options import OptimizationSet
from services.planner.rates import DtypeRates, ElementwiseRates, RateCurve, Rates

# Operations of torch for every one that moves data: views above all, stores, attention. Counted in
# steps of four families (tests/integration/planner/test_launches.py).
_LAUNCHED = 4
# Lengths of chunks, in powers of two, for which the cut into pieces is known.
_CHUNK_POWERS = range(6, 16)
# Multiply-adds count twice.
FORWARD_OPERATIONS = 2


@dataclass(frozen=True, slots=True)
class TimeTerms:
    """What one model costs on one machine in one dtype: seconds and bytes per token, and rates."""

    linear_seconds: Number
    key_seconds: Number
    unread_seconds: Number
    # Of products with a layer's input, whose gradient the first layer does not make.
    input_seconds: Number
    # Bytes read and written, by the width of the tensor that is written.
    elementwise_traffic: Mapping[int, float]
    # Bytes of all results, products' and attention's too, forward and backward, by their width.
    written: Mapping[int, tuple[float, float]]
    head_rate: Number
    thin_rate: Number
    # What operations cost beside their work, for one chunk of one layer: products forward and
    # backward, element-wise ones forward.
    forward_overhead: Number
    backward_overhead: Number
    elementwise_overhead: Number
    # What Python takes to ask for a chunk's pass through a layer, forward or backward.
    launch_seconds: Number
    # Causal, and of blocks where the machine has rates of those.
    attention_forward: RateCurve
    attention_backward: RateCurve
    blocks: tuple[RateCurve, RateCurve] | None
    # Chunks of keys that one block of backward has.
    key_chunks: int
    on_cuda: bool
    elementwise: ElementwiseRates
    rates: Rates


def time_terms(
    model: ModelShape,
    chosen: OptimizationSet,
    adapters: Adapters,
    rates: Rates,
    *,
    on_cuda: bool = False,
) -> TimeTerms:
    """The terms of a model under the dtype and heads of a set.

    Raises `ValueError` when the machine has no rates for the dtype.
    """
    of_dtype = rates.of(chosen.dtype.element_bytes)
    if of_dtype is None:
        raise ValueError(f"no rates for {chosen.dtype.value}")
    converted = model.with_key_value_heads(chosen.key_value_heads)
    rows = list(zip(converted.architecture.linears, converted.linears, strict=True))
    attention = [
        linear for row, linear in rows if row.outputs in ("query", "key_value", "query_key_value")
    ]
    with_input = attention
    if converted.architecture.parallel:  # the MLP reads it too
        with_input = [linear for row, linear in rows if row.inputs == "hidden"]
    forward, backward = of_dtype.attention(converted.head_size, chosen.attention_kernel)
    blocks = of_dtype.blocks(converted.head_size, chosen.attention_kernel)
    groups, threads = converted.key_value_head_count, rates.threads
    backward = backward.times(busy_share(groups, threads) if threads else 1.0)
    if blocks is not None and threads:
        blocks = blocks[0], _in_pieces(blocks[1], groups, threads)
    products = len(converted.linears)
    adapted = sum(adapters.targets(linear.name) for linear in converted.linears)
    traffic, results, operations = _forward_elementwise(
        converted, chosen.dtype.element_bytes, adapters, streaming=chosen.streaming
    )
    overhead = of_dtype.operation_overhead_seconds
    return TimeTerms(
        linear_seconds=converted.layer_count * _product_seconds(converted.linears, of_dtype),
        key_seconds=converted.layer_count * _product_seconds(attention, of_dtype),
        unread_seconds=converted.layer_count * _product_seconds(converted.unread_linears, of_dtype),
        input_seconds=converted.layer_count * _product_seconds(with_input, of_dtype),
        elementwise_traffic=traffic,
        written=_written(converted, chosen.dtype.element_bytes, results),
        head_rate=of_dtype.head,
        thin_rate=of_dtype.thin,
        forward_overhead=(products + 2 * adapted) * overhead,
        backward_overhead=(products + 4 * adapted) * overhead,
        elementwise_overhead=operations * overhead,
        launch_seconds=_LAUNCHED * (products + 2 * adapted + operations) * rates.launch_seconds,
        attention_forward=forward,
        attention_backward=backward,
        blocks=blocks,
        key_chunks=key_chunks(chosen.attention_kernel, on_cuda=on_cuda),
        on_cuda=on_cuda,
        elementwise=of_dtype.elementwise,
        rates=rates,
    )


def _in_pieces(backward: RateCurve, key_value_heads: int, threads: int) -> RateCurve:
    """A CPU's rates by the length of a chunk whose queries are cut into pieces for its threads."""
    points = []
    for chunk in (2**power for power in _CHUNK_POWERS):
        pieces = query_pieces(key_value_heads, threads, chunk)
        rate = float(backward.at(chunk / pieces))
        points.append((float(chunk), rate * busy_share(pieces * key_value_heads, threads)))
    return RateCurve.of(points)


def _width(inputs: int, outputs: int) -> float:
    """Harmonic mean of a weight's sides: the smaller one decides how fast its product runs."""
    return 2 * inputs * outputs / (inputs + outputs)


def _product_seconds(linears: tuple[Linear, ...] | list[Linear], rates: DtypeRates) -> float:
    """Seconds per token of one product with each weight."""
    return sum(
        FORWARD_OPERATIONS
        * linear.weight_count
        / float(rates.matmul.at(_width(linear.inputs, linear.outputs)))
        for linear in linears
    )


def _forward_elementwise(
    model: ModelShape, element: int, adapters: Adapters, *, streaming: bool
) -> tuple[Mapping[int, float], Mapping[int, float], int]:
    """Bytes per token and layer, by the width of what is written, and how many operations.

    All that is read and written; then what is written to tensors that are made for it. Adapters'
    sums, norms, rotary embedding, activation, residuals.
    """
    traffic: dict[int, float] = defaultdict(float)
    results: dict[int, float] = defaultdict(float)
    operations = 0
    for linear in model.linears:
        if adapters.targets(linear.name):
            # Its products are thin, see linear. The streaming executor's are added in place, which
            # reads once more; else its output is scaled and added, in two and three passes.
            in_place = streaming and adapters.share_inputs(element)
            traffic[linear.outputs] += (1 if in_place else 5) * element
            results[linear.outputs] += (0 if in_place else 2) * element
            operations += 1 if in_place else 2
    # fp32: cast, square, mean, scale, cast back, weight; native: one kernel.
    native = model.architecture.norm is Norm.LAYER
    norm, norm_results, norm_operations = (
        (2 * element, element, 1) if native else (24 + 4 * element, 12 + 2 * element, 6)
    )
    # Residuals and their sums, three passes each.
    traffic[model.hidden_size] += model.architecture.norm_count * norm + 6 * element
    results[model.hidden_size] += model.architecture.norm_count * norm_results + 2 * element
    operations += model.architecture.norm_count * norm_operations + 2
    # Two products and their sum, and the half-turn's copy; norms over the same.
    normed = model.architecture.query_key_norm is not QueryKeyNorm.NONE
    for width in (model.query_width, model.key_value_width):
        traffic[width] += 10 * element + normed * norm
        results[width] += 4 * element + normed * norm_results
        operations += 4 + normed * norm_operations
    gate = 0 if model.architecture.mlp is Mlp.PLAIN else 3
    # Two passes each.
    steps = 14 if model.activation == "gelu_new" else 2
    traffic[model.intermediate_size] += (steps + gate) * element
    results[model.intermediate_size] += (steps // 2 + bool(gate)) * element
    operations += steps // 2 + bool(gate)
    return _times_width(traffic), _times_width(results), operations


def _written(
    model: ModelShape, element: int, results: Mapping[int, float]
) -> Mapping[int, tuple[float, float]]:
    """Bytes of results per token and layer, forward and backward, by their width.

    An element-wise operation has two gradients; a product one, of its inputs; attention three.
    """
    forward: dict[int, float] = defaultdict(float, results)
    backward: dict[int, float] = defaultdict(float)
    for width, written in results.items():
        backward[width] += 2 * written
    for linear in model.linears:
        forward[linear.outputs] += linear.outputs * element
        backward[linear.inputs] += linear.inputs * element
    forward[model.query_width] += model.query_width * element
    backward[model.query_width] += model.query_width * element
    backward[model.key_value_width] += 2 * model.key_value_width * element
    return {width: (forward[width], backward[width]) for width in sorted({*forward, *backward})}


def _times_width(amounts: Mapping[int, float]) -> Mapping[int, float]:
    return {width: amount * width for width, amount in amounts.items()}
