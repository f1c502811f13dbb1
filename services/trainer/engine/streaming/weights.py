"""Frozen weights of the decoder layers in host memory, two layers of them at a time on the device.

The layers' bytes lie one after another in pinned slabs, so that one layer is one copy. The device
has two buffers as large as the largest layer: even layers use the one, odd layers the other, and
their parameters are views of it for good. While a layer works in one buffer, the next one in the
direction of travel (up in forward, down in backward) arrives in the other.

Autograd keeps views of the weights for backward, so a layer must stay where it is until the
backward of what it ran is done. Two buffers are enough because the streaming executor has all
chunks of a layer behind it, forward and backward, before it touches another one. Whoever runs
backward later than that gets an error from autograd: an evicted layer's weights count as modified.

Adapters and buffers of modules stay on the device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import increment_version

from services.common.engine_process import SLAB_BYTES
from services.trainer.engine.decoder import decoder_layers
from services.trainer.engine.failures import BAD_MODEL, EngineError
from services.trainer.engine.memory_tracking import counted_as_host
from services.trainer.engine.streaming.copy_stream import CopyStream
from services.trainer.engine.transfers import Moved

BUFFERS = 2
# As torch's CUDA allocator aligns, so that kernels choose what they choose for resident weights.
_ALIGNMENT = 512
# Attribute of a parameter that is its tensor.
_DATA = "data"


def stream_weights(model: Any, device: torch.device) -> StreamedWeights:
    """Moves the frozen weights of all decoder layers to host memory, to be streamed from there.

    What is not in a decoder layer stays where it is. Before the model is taken apart (`ModelParts`,
    whose recorders then need no weights). Raises `EngineError` (BAD_MODEL), see `take`.
    """
    weights = StreamedWeights(device)
    for layer in decoder_layers(model):
        weights.take(layer)
    weights.install()
    return weights


class StreamedWeights:
    """Layer after layer is taken; then the model is made to run from host memory."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._slabs = device, _Slabs(pinned=device.type == "cuda")
        self._layers: list[_Layer] = []
        self._owners: set[int] = set()
        self._used_bytes = 0

    @property
    def description(self) -> str:
        """What is where, for people."""
        gibibytes = self._used_bytes / 2**30
        return (
            f"{len(self._layers)} layers in {gibibytes:.1f} GiB of pinned host memory, "
            "two at a time on the device"
        )

    @property
    def moved(self) -> Moved:
        """By layers that were fetched."""
        return Moved(host_to_device_bytes=self._copies.copied_bytes)

    def take(self, module: nn.Module) -> None:
        """Copies a decoder layer's frozen tensors to host memory and lets the originals go.

        Until `install` they are empty. Raises `EngineError` (BAD_MODEL) for weights that two
        layers share.
        """
        layer = _Layer(module, self._used_bytes, tuple(_packed(module)))
        owners = {id(tensor.owner) for tensor in layer.tensors}
        if owners & self._owners:
            problem = "decoder layers share weights, which cannot be streamed then"
            raise EngineError(BAD_MODEL, problem, "take a plan with the weights on the device")
        self._owners |= owners
        for tensor in layer.tensors:
            original = getattr(tensor.owner, tensor.name)
            flat = original.reshape(-1).view(torch.uint8)
            home = self._slabs.span(layer.begin + tensor.offset, tensor.size_bytes)
            for piece, part in _side_by_side(home, flat):
                piece.copy_(part)
            setattr(tensor.owner, tensor.name, original.new_empty(0))
        self._layers.append(layer)
        self._used_bytes += layer.size_bytes

    def install(self) -> None:
        """Makes the layers' tensors views of two device buffers, which their forward fills."""
        largest = max(layer.size_bytes for layer in self._layers)
        self._copies = CopyStream(self._device, BUFFERS)
        self._buffers = [
            torch.empty(largest, dtype=torch.uint8, device=self._device) for _ in range(BUFFERS)
        ]
        # Which layer each buffer holds; the layer at work, none at first.
        self._held: list[int | None] = [None] * BUFFERS
        self._at = -1
        for index, layer in enumerate(self._layers):
            for tensor in layer.tensors:
                tensor.place(self._buffers[index % BUFFERS])
            layer.module.forward = self._streamed(index, layer.module.forward)

    def _streamed(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def streamed(*arguments: Any, **keywords: Any) -> Any:
            """The layer, once its weights are on the device."""
            self._ensure(index)
            return forward(*arguments, **keywords)

        return streamed

    def _ensure(self, index: int) -> None:
        """The layer may work; starts to fetch the next one."""
        if index == self._at:
            return
        # Passes go up, wherever they begin; only backward comes down, one by one.
        following = index - 1 if index == self._at - 1 else index + 1
        self._at = index
        self._load(index)
        self._copies.wait_for(index % BUFFERS)
        if following in range(len(self._layers)):
            self._load(following)

    def _load(self, index: int) -> None:
        """Starts to copy a layer to its buffer, once all work asked for so far is done."""
        buffer = index % BUFFERS
        held = self._held[buffer]
        if held == index:
            return
        if held is not None:
            increment_version(self._layers[held].parameters)
        layer = self._layers[index]
        home = self._slabs.span(layer.begin, layer.size_bytes)
        parts = _side_by_side(home, self._buffers[buffer][: layer.size_bytes])
        self._copies.copy(((part, piece) for piece, part in parts), buffer)
        self._held[buffer] = index


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An attribute that is a frozen tensor, and where it lies among its layer's bytes."""

    owner: Any
    name: str
    offset: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Bytes it takes, without what is left free after it."""
        return self.shape.numel() * self.dtype.itemsize

    def place(self, buffer: torch.Tensor) -> None:
        """Makes it a view of its place in a buffer."""
        at = buffer[self.offset : self.offset + self.size_bytes]
        setattr(self.owner, self.name, at.view(self.dtype).view(self.shape))


@dataclass(frozen=True, slots=True)
class _Layer:
    """A decoder layer, where its bytes begin in host memory, and its frozen tensors."""

    module: nn.Module
    begin: int
    tensors: tuple[_Tensor, ...]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those of its tensors that are parameters."""
        return [tensor.owner for tensor in self.tensors if tensor.name == _DATA]

    @property
    def size_bytes(self) -> int:
        """Bytes of all its tensors, aligned."""
        last = self.tensors[-1]
        return _aligned(last.offset + last.size_bytes)


class _Slabs:
    """Host memory byte after byte, in slabs that pinning does not round up."""

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._slabs: list[torch.Tensor] = []

    def span(self, begin: int, size: int) -> list[torch.Tensor]:
        """The bytes from `begin` on, in as many pieces as there are slabs in it."""
        pieces = []
        while size:
            number, at = divmod(begin, SLAB_BYTES)
            piece = self._slab(number)[at : at + size]
            pieces.append(piece)
            begin, size = begin + len(piece), size - len(piece)
        return pieces

    def _slab(self, number: int) -> torch.Tensor:
        while number >= len(self._slabs):
            with counted_as_host():
                slab = torch.empty(SLAB_BYTES, dtype=torch.uint8, pin_memory=self._pinned)
            self._slabs.append(slab)
        return self._slabs[number]


def _packed(module: nn.Module) -> Iterator[_Tensor]:
    """A layer's frozen tensors, one after another."""
    offset = 0
    for owner, name in _frozen(module):
        tensor = getattr(owner, name)
        packed = _Tensor(owner, name, offset, tensor.shape, tensor.dtype)
        yield packed
        offset = _aligned(offset + packed.size_bytes)


def _frozen(module: nn.Module) -> Iterator[tuple[Any, str]]:
    """Frozen parameters, and the statistics of quantised ones: owners and attributes."""
    for parameter in module.parameters():
        if not parameter.requires_grad:
            yield parameter, _DATA
            yield from _statistics(getattr(parameter, "quant_state", None))


def _statistics(state: Any) -> Iterator[tuple[Any, str]]:
    """Tensors of a bitsandbytes `QuantState` and of the one inside it."""
    for name, value in vars(state).items() if state is not None else ():
        if isinstance(value, torch.Tensor):
            yield state, name
        elif isinstance(value, type(state)):
            yield from _statistics(value)


def _side_by_side(
    pieces: list[torch.Tensor], flat: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each piece with the part of `flat` that it stands for."""
    parts = flat.split([len(piece) for piece in pieces])
    yield from zip(pieces, parts, strict=True)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
