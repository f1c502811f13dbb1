"""From the dtype of a model's files to the one it computes in, one tensor after another.

A file that is mapped takes no memory. Converted as it is read, as transformers does, a whole model
would be in host memory before the first weight is on the device.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn


def convert_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Parameters that are not quantised, in place; those in `dtype` already stay where they are."""
    for parameter in module.parameters():
        if not _is_quantised(parameter):
            parameter.data = parameter.data.to(dtype)


def move_to(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Moves parameters and buffers one by one, as copies: the memory-mapped file is let go.

    Buffers become what they are in a model that is made in `dtype`: some stay in fp32, and what was
    made in 16 bits cannot be made exact by a conversion. Its configuration names `dtype` then.
    """
    for parameter in model.parameters():
        if not _is_quantised(parameter):
            parameter.data = parameter.data.to(device, dtype, copy=True)
    with init_empty_weights(include_buffers=False):
        made = type(model)._from_config(model.config, dtype=dtype)
    for name, like in made.named_modules():
        module = model.get_submodule(name)
        for key, buffer in like.named_buffers(recurse=False):
            is_made = key in module._non_persistent_buffers_set
            source = buffer if is_made else module._buffers[key]
            module._buffers[key] = source.to(device, buffer.dtype, copy=True)


def _is_quantised(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "quant_state")
