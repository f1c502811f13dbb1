"""Gradients of one layer's adapters, summed over chunks in fp32.

Stock training rounds each gradient to 16 bits once; rounding every chunk's sum would be worse.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class AdapterGradients:
    """fp32 sums beside the parameters of one layer: 4 bytes per adapter parameter."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = parameters
        self._sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        self._has_any = [False] * len(parameters)

    def add(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Adds one chunk's gradients; None where the chunk did not use the parameter."""
        for index, gradient in enumerate(gradients):
            if gradient is not None:
                self._sums[index].add_(gradient)
                self._has_any[index] = True

    def store(self) -> None:
        """Adds the sums to `.grad`."""
        for parameter, total, has_any in zip(
            self._parameters, self._sums, self._has_any, strict=True
        ):
            if not has_any:
                continue
            if parameter.grad is None:
                parameter.grad = total.to(parameter.dtype)
            else:
                parameter.grad.add_(total)
