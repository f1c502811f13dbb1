"""How a stored tensor is written: as it is, or in fewer bits.

int8 keeps an fp32 scale for 128 values. NF4 is QLoRA's 4-bit code (https://arxiv.org/abs/2305.14314)
with an fp32 scale for 64 values; bitsandbytes decodes blocks under 2048 fast.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import bitsandbytes  # noqa: F401 - registers the operations used below
import torch

_BNB: Any = torch.ops.bitsandbytes
_INT8_BLOCK = 128
_INT8_LARGEST = 127
_NF4_BLOCK = 64
_SCALE_BYTES = 4


class Codec(Protocol):
    """Writes tensors into bytes, and reads them back."""

    name: str

    def size_bytes(self, elements: int, dtype: torch.dtype) -> int:
        """Bytes that so many values of a dtype take."""
        ...

    def encode(self, tensor: torch.Tensor, target_n: torch.Tensor) -> None:
        """Fills `target_n`, uint8 of `size_bytes`."""
        ...

    def decode(
        self, source_n: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        """The tensor; a view of the bytes where they are its own."""
        ...


class Exact:
    """The values themselves."""

    name = "exact"

    def size_bytes(self, elements: int, dtype: torch.dtype) -> int:
        """Bytes of the values."""
        return elements * dtype.itemsize

    def encode(self, tensor: torch.Tensor, target_n: torch.Tensor) -> None:
        """Copies."""
        target_n.view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def decode(
        self, source_n: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        """A view."""
        return source_n.view(dtype).view(shape)


class Int8:
    """One byte per value: the nearest of 255 steps between minus and plus the block's largest."""

    name = "int8"

    def size_bytes(self, elements: int, dtype: torch.dtype) -> int:  # noqa: ARG002
        """Scales, then values; the last block may be part empty."""
        return _blocks(elements, _INT8_BLOCK) * (_INT8_BLOCK + _SCALE_BYTES)

    def encode(self, tensor: torch.Tensor, target_n: torch.Tensor) -> None:
        """Rounds to the nearest step."""
        count = _blocks(tensor.numel(), _INT8_BLOCK)
        padding = count * _INT8_BLOCK - tensor.numel()
        values = torch.nn.functional.pad(tensor.reshape(-1).float(), (0, padding))
        values = values.view(count, _INT8_BLOCK)
        scales = values.abs().amax(dim=1).div_(_INT8_LARGEST)
        # A block of zeros: any scale does.
        values.div_(scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round_()
        split = count * _SCALE_BYTES
        target_n[:split].view(torch.float32).copy_(scales)
        target_n[split:].view(torch.int8).copy_(values.view(-1))

    def decode(
        self, source_n: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        """The steps times their scales."""
        count = _blocks(math.prod(shape), _INT8_BLOCK)
        split = count * _SCALE_BYTES
        scales = source_n[:split].view(torch.float32)[:, None]
        values = source_n[split:].view(torch.int8).view(count, _INT8_BLOCK) * scales
        return values.view(-1)[: math.prod(shape)].view(shape).to(dtype)


class Nf4:
    """Half a byte per value: the nearest quantile of a normal distribution, scaled by block."""

    name = "nf4"

    def size_bytes(self, elements: int, dtype: torch.dtype) -> int:  # noqa: ARG002
        """Scales, then pairs of values."""
        return _blocks(elements, _NF4_BLOCK) * (_NF4_BLOCK // 2 + _SCALE_BYTES)

    def encode(self, tensor: torch.Tensor, target_n: torch.Tensor) -> None:
        """Rounds to the nearest quantile."""
        count = _blocks(tensor.numel(), _NF4_BLOCK)
        padding = count * _NF4_BLOCK - tensor.numel()
        values = torch.nn.functional.pad(tensor.reshape(-1), (0, padding))
        codes, scales = _BNB.quantize_4bit(values, _NF4_BLOCK, "nf4", torch.uint8)
        split = count * _SCALE_BYTES
        target_n[:split].view(torch.float32).copy_(scales)
        target_n[split:].copy_(codes.view(-1))

    def decode(
        self, source_n: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        """The quantiles times their scales."""
        count = _blocks(math.prod(shape), _NF4_BLOCK)
        split = count * _SCALE_BYTES
        scales = source_n[:split].view(torch.float32)
        whole = (count * _NF4_BLOCK,)
        values: torch.Tensor = _BNB.dequantize_4bit(
            source_n[split:][:, None], scales, _NF4_BLOCK, "nf4", whole, dtype
        )
        return values.view(-1)[: math.prod(shape)].view(shape)


EXACT = Exact()


def _blocks(elements: int, block: int) -> int:
    return -(-elements // block)
