"""A linear module with its LoRA adapter as one operation, which adds where PEFT makes new tensors.

PEFT computes x W + (x A B) s by operations of its own, each of which reads and writes tensors as
wide as the output: the adapter's product, its scaling, the sum, and in backward the scaled gradient
and the sum of two gradients of x. Here the scale is put on the tensor of rank width and both
products are added in place: the same sums, rounded less often.

Shapes: I inputs, O outputs, R rank, N rows (all other dimensions).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from services.trainer.engine.quantization import dequantised
from services.trainer.engine.streaming.unread_outputs import is_left_out, without_values


def add_in_place(model: nn.Module) -> None:
    """Gives every adapted linear module of `model` a forward of one operation, for good.

    Adapters with dropout stay as PEFT has them.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), nn.Linear):
            (adapter,) = module.active_adapters
            if isinstance(module.lora_dropout[adapter], nn.Identity):
                vars(module)["forward"] = _OneOperation(module, adapter)


class _OneOperation:
    def __init__(self, module: Any, adapter: str) -> None:
        self._module, self._base = module, module.get_base_layer()
        self._a, self._b = module.lora_A[adapter], module.lora_B[adapter]
        self._scale = float(module.scaling[adapter])

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., I) to (..., O)."""
        base, a, b = self._base, self._a.weight, self._b.weight
        if a.dtype != inputs.dtype:  # adapters in fp32: their products are too
            separate: torch.Tensor = type(self._module).forward(self._module, inputs)
            return separate
        apply: Callable[..., torch.Tensor] = _AdaptedLinear.apply
        return apply(inputs, base.weight, a, b, base, self._scale)


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor,
        base: nn.Linear, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        """(..., I) to (..., O), by W (O, I), A (R, I) and B (O, R)."""
        rows_ni = inputs.reshape(-1, inputs.shape[-1])
        scaled_nr = (rows_ni @ a.T).mul_(scale)
        ctx.save_for_backward(inputs, weight, a, b, scaled_nr)
        ctx.scale = scale
        if is_left_out(base):
            return without_values(inputs, base.out_features)
        output: torch.Tensor = base(inputs)
        output.view(-1, output.shape[-1]).addmm_(scaled_nr, b.T)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of inputs, A and B."""
        inputs, weight, a, b, scaled_nr = ctx.saved_tensors
        gradient_no = gradients[0].reshape(-1, gradients[0].shape[-1])
        gradient_nr = (gradient_no @ b).mul_(ctx.scale)
        db = gradient_no.T @ scaled_nr
        da = gradient_nr.T @ inputs.reshape(-1, inputs.shape[-1])
        found = None
        if ctx.needs_input_grad[0]:
            found_ni = gradient_no @ dequantised(weight, gradient_no.dtype)
            found = found_ni.addmm_(gradient_nr, a).view(inputs.shape)
        return found, None, da, db, None, None
