"""NF4 base weights, double-quantised (QLoRA, https://arxiv.org/abs/2305.14314)."""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn

from services.trainer.engine.decoder import decoder_layers, linear_modules


def quantise_decoder_layers(model: Any, device: torch.device, compute_dtype: torch.dtype) -> int:
    """Replaces the linear modules inside decoder layers by NF4 ones on `device`; returns how many.

    One module at a time: its 16-bit weight is let go before the next is touched.
    """
    count = 0
    for layer in decoder_layers(model):
        for parent, name, linear in linear_modules(layer):
            setattr(parent, name, _quantised(linear, device, compute_dtype))
            count += 1
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
        linear.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4"
    )
    quantised.weight = weight.to(device)
    if has_bias:
        quantised.bias = nn.Parameter(linear.bias.data, requires_grad=False)
    # On AVX512-BF16 CPUs a forward without gradients would repack the weight in place, and later
    # backwards would silently lose gradients (bitsandbytes 0.50).
    quantised.support_avx512bf16_for_cpu = False
    return quantised.eval()
