"""The sets the search chooses from, in columns: one grid per executor and dtype."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import compress, product
from typing import Any

import numpy as np

from services.planner.attention_kernels import best_kernel
from services.planner.machine import ComputeDtype, Machine
from services.planner.models import ModelShape
from services.planner.options import (
    ACTIVATIONS_4BIT,
    ACTIVATIONS_8BIT,
    ADAMW_8BIT,
    GROUPED_QUERY_CONVERSION,
    QLORA,
    BasePrecision,
    Codec,
    Executor,
    OptimizationSet,
    Place,
    Policy,
    hidden_states_place,
    kept_keys_place,
)
from services.planner.terms import SetTerms, set_terms

# Lossy optimisations that are off unless the caller allows them.
OPT_IN = (ACTIVATIONS_8BIT, ACTIVATIONS_4BIT, GROUPED_QUERY_CONVERSION)
# Lossy optimisations that are on where they help, unless the caller forbids them.
DEFAULT_LOSSY = (QLORA, ADAMW_8BIT)
LOSSY = (*OPT_IN, *DEFAULT_LOSSY)
_INTERVALS = (1, 4)


@dataclass(frozen=True, slots=True)
class Choice:
    """What the search may choose from on a machine.

    resident, streaming: executors; one has no sliding windows, the other no dropout.
    exact_too: exact sets beside the quantised ones, which are better in everything else.
    heads: query heads and key-value heads of the model.
    key_value_heads: heads it may be converted to; 0 leaves it as it is.
    """

    dtypes: tuple[ComputeDtype, ...]
    kernel: str
    has_own_memory: bool
    quantises: bool
    resident: bool
    streaming: bool
    exact_too: bool
    heads: tuple[int, int]
    key_value_heads: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class Group:
    """Sets that share executor, dtype and heads, and the same in columns."""

    sets: tuple[OptimizationSet, ...]
    columns: SetTerms

    def only(self, wanted: Any) -> Group:
        """The sets where `wanted`, a row of flags, is true."""
        columns = {name: getattr(self.columns, name)[:, wanted] for name in self.columns.__slots__}
        return Group(tuple(compress(self.sets, wanted)), SetTerms(**columns))


@dataclass(frozen=True, slots=True)
class Grid:
    """All groups; `lossy` says for every id which of all sets (in order) need it.

    on_disk: which of them keep anything on disk. streams: which the streaming executor runs.
    """

    groups: tuple[Group, ...]
    sets: tuple[OptimizationSet, ...]
    lossy: Mapping[str, Any]
    on_disk: Any
    streams: Any

    def only(self, wanted: Any) -> Grid:
        """The sets where `wanted`, a row of flags, is true."""
        ends = np.cumsum([len(group.sets) for group in self.groups])
        parts = zip(self.groups, np.split(wanted, ends[:-1]), strict=True)
        return Grid(
            tuple(group.only(flags) for group, flags in parts if flags.any()),
            tuple(compress(self.sets, wanted)),
            {name: flags[wanted] for name, flags in self.lossy.items()},
            self.on_disk[wanted],
            self.streams[wanted],
        )


def choice(
    machine: Machine, model: ModelShape, *, resident: bool, streaming: bool, exact_too: bool
) -> Choice | None:
    """The choice on this machine; None without a fused attention kernel, any rate or executor."""
    kernel = best_kernel(machine.attention_kernels, model.head_size)
    dtypes = tuple(dtype for dtype in machine.dtypes if machine.rates.of(dtype.element_bytes))
    if kernel is None or not dtypes or not (resident or streaming):
        return None
    heads = model.convertible_key_value_heads
    return Choice(
        dtypes=dtypes,
        kernel=kernel,
        has_own_memory=machine.has_own_memory,
        quantises=machine.has_bitsandbytes,
        resident=resident,
        streaming=streaming,
        exact_too=exact_too or not machine.has_bitsandbytes,
        heads=(model.query_head_count, model.key_value_head_count),
        key_value_heads=(0, heads) if heads else (0,),
    )


@cache
def grid_of(wanted: Choice) -> Grid:
    """Every legal set. Sets do not depend on what is asked, only on what there is to choose from:
    they are made once."""
    groups = []
    for dtype, heads in product(wanted.dtypes, wanted.key_value_heads):
        makers = ((wanted.resident, _resident), (wanted.streaming, _streaming))
        for is_wanted, make in makers:
            if is_wanted:
                sets = tuple(make(wanted, dtype, heads))
                groups.append(Group(sets, set_terms(sets)))
    everything = tuple(one for group in groups for one in group.sets)
    lossy = {name: np.array([name in one.lossy_ids for one in everything]) for name in LOSSY}
    on_disk = np.array([Place.DISK in one.places for one in everything])
    streams = np.array([one.streaming for one in everything])
    return Grid(tuple(groups), everything, lossy, on_disk, streams)


def _precisions(wanted: Choice) -> list[tuple[BasePrecision, bool]]:
    """Precisions of the base weights, each with or without 8-bit AdamW."""
    lossy = [(BasePrecision.FULL, True), (BasePrecision.NF4, True)]
    exact = [(BasePrecision.FULL, False)] if wanted.exact_too else []
    return exact + (lossy if wanted.quantises else [])


def _resident(wanted: Choice, dtype: ComputeDtype, heads: int) -> Iterator[OptimizationSet]:
    layouts = [
        (Policy.KEEP_ALL, Place.DEVICE),
        (Policy.SELECTIVE, Place.DEVICE),
        (Policy.EVERY_LAYER, Place.DEVICE),
    ]
    if wanted.has_own_memory:
        layouts.append((Policy.EVERY_LAYER, Place.HOST))
    for (precision, eight_bit), (policy, place) in product(_precisions(wanted), layouts):
        yield OptimizationSet(
            base_precision=precision, dtype=dtype, attention_kernel=wanted.kernel, policy=policy,
            layer_inputs=place, key_value_heads=heads, adamw_8bit=eight_bit,
            attention_outputs=Place.DEVICE if policy is Policy.SELECTIVE else Place.NOWHERE,
        )  # fmt: skip


def _streaming(wanted: Choice, dtype: ComputeDtype, heads: int) -> Iterator[OptimizationSet]:
    weights = (Place.DEVICE, Place.HOST) if wanted.has_own_memory else (Place.DEVICE,)
    for (precision, eight_bit), weight_place, stores in product(
        _precisions(wanted), weights, list(_store_layouts(wanted))
    ):
        inputs, codec, interval, outputs, key_values = stores
        yield OptimizationSet(
            base_precision=precision, dtype=dtype, attention_kernel=wanted.kernel,
            executor=Executor.STREAMING,
            policy=Policy.EVERY_LAYER if outputs is Place.NOWHERE else Policy.SELECTIVE,
            layer_inputs=inputs, layer_input_interval=interval, codec=codec,
            attention_outputs=outputs,
            kept_keys=kept_keys_place(
                outputs, key_values, wanted.heads[0], heads or wanted.heads[1]
            ),
            hidden_gradients=hidden_states_place(inputs, has_own_memory=wanted.has_own_memory),
            key_values=key_values, weights=weight_place, key_value_heads=heads,
            adamw_8bit=eight_bit,
        )  # fmt: skip


def _store_layouts(
    wanted: Choice,
) -> Iterator[tuple[Place, Codec, int, Place, Place]]:
    """Place, codec and interval of layer inputs; places of attention outputs and keys.

    Attention outputs wait where layer inputs do, so that ids name a set and no other.
    """
    memory = [Place.DEVICE, Place.HOST] if wanted.has_own_memory else [Place.DEVICE]
    codecs = Codec if wanted.quantises else [Codec.EXACT]
    for inputs, interval, codec in product([*memory, Place.DISK], _INTERVALS, codecs):
        # A codec is for what leaves the device, and smaller than leaving layers out.
        if codec is not Codec.EXACT and (inputs is Place.DEVICE or interval > 1):
            continue
        # Kept attention outputs do not belong to inputs in four bits.
        kept = (Place.NOWHERE,) if codec is Codec.NF4 else (Place.NOWHERE, inputs)
        for outputs, keys in product(kept, memory):
            yield inputs, codec, interval, outputs, keys
