"""What Python takes to ask for one operation of a model.

A GPU waits wherever a kernel is shorter than that, a CPU always: short windows cost what their
operations cost, not what their arithmetic does.

Shapes: B batch 1, S tokens, E hidden, H heads, D head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from services.profiler.probes.compute import seconds_of, sixteen_bit_dtype

_BLOCKS, _TOKENS, _HEADS, _HEAD_DIM = 8, 16, 4, 32
_REPEATS = 9


def operation_launch_seconds(device: torch.device) -> float:
    """Median seconds for each of torch's operations in forward and backward of a small model.

    Views count as operations. Its tensors are tiny, so that it is the asking which is timed.
    """
    dtype, width = sixteen_bit_dtype(device), _HEADS * _HEAD_DIM
    model = nn.Sequential(*(_Block(width) for _ in range(_BLOCKS))).to(device, dtype)
    inputs_bse = torch.randn(1, _TOKENS, width, device=device, dtype=dtype, requires_grad=True)

    def step() -> None:
        """Forward and backward, as often as it is called."""
        outputs_bse = model(inputs_bse)
        torch.autograd.grad(outputs_bse, [inputs_bse, *model.parameters()], outputs_bse)

    with OperationCounter() as counter:
        step()
    return float(seconds_of(device, step, _REPEATS) / counter.operations)


class _Block(nn.Module):
    """Norm, projection, rotation, gate and residual, operation by operation as models have them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_e = nn.Parameter(torch.ones(width))
        self.query, self.gate = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden_bse: torch.Tensor) -> torch.Tensor:
        """(B, S, E) to (B, S, E)."""
        wide = hidden_bse.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        query = self.query(self.norm_e * normed.to(hidden_bse.dtype))
        query_bhsd = query.view(*hidden_bse.shape[:2], _HEADS, _HEAD_DIM).transpose(1, 2)
        first, second = query_bhsd.chunk(2, dim=-1)
        turned = query_bhsd * 0.5 + torch.cat((-second, first), dim=-1) * 0.5
        joined = turned.transpose(1, 2).reshape(hidden_bse.shape)
        gated: torch.Tensor = hidden_bse + nn.functional.silu(self.gate(joined)) * joined
        return gated


class OperationCounter(TorchDispatchMode):
    """Counts torch's operations inside it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation."""
        self.operations += 1
        return func(*args, **(kwargs or {}))
