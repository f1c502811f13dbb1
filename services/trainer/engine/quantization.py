"""NF4 base weights, double-quantised (QLoRA, https://arxiv.org/abs/2305.14314)."""

from __future__ import annotations

import bitsandbytes as bnb
import torch
from torch import nn

from services.trainer.engine.decoder import linear_modules


def quantise_layer(layer: nn.Module, device: torch.device, compute_dtype: torch.dtype) -> int:
    """Replaces the linear modules of a decoder layer by NF4 ones on `device`; returns how many.

    One module at a time, from its weight in `compute_dtype`, which is let go before the next is
    touched.
    """
    linears = linear_modules(layer)
    count = len(linears)
    while linears:
        parent, name, linear = linears.pop()
        setattr(parent, name, _quantised(linear, device, compute_dtype))
    return count


def _quantised(
    linear: nn.Linear, device: torch.device, compute_dtype: torch.dtype
) -> bnb.nn.Linear4bit:
    has_bias = linear.bias is not None
    quantised = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=has_bias, device="meta",
        compute_dtype=compute_dtype, compress_statistics=True, quant_type="nf4",
    )  # fmt: skip
    weight = bnb.nn.Params4bit(
        linear.weight.data.to(compute_dtype),
        requires_grad=False, compress_statistics=True, quant_type="nf4",
    )  # fmt: skip
    quantised.weight = weight.to(device)
    if has_bias:
        quantised.bias = nn.Parameter(linear.bias.data, requires_grad=False)
    # On AVX512-BF16 CPUs a forward without gradients would repack the weight in place, and later
    # backwards would silently lose gradients (bitsandbytes 0.50).
    quantised.support_avx512bf16_for_cpu = False
    return quantised.eval()


def dequantised(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A module's weight, (out, in); an NF4 one made anew in `dtype`."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    full: torch.Tensor = bnb.functional.dequantize_4bit(weight, state)
    return full.to(dtype)
