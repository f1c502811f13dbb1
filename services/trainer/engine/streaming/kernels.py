"""torch's fused attention kernels, forward and backward, behind one signature.

Called directly, because backward needs the log-sum-exp of *all* keys where autograd would use the
block's own. No dropout, no mask; `is_causal` counts from the top left, so it is for squares only.

Shapes: B batch, S queries, K keys, H query heads, G KV heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from services.common.attention_threads import query_pieces
from services.trainer.engine.failures import BAD_MODEL, EngineError

_ATEN: Any = torch.ops.aten
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Heads:
    """What a kernel has to cope with."""

    device: torch.device
    dtype: torch.dtype
    query_heads: int
    key_value_heads: int
    head_dim: int


class Kernel(Protocol):
    """One implementation of attention. `name` is as in NodeProfile.software.attention_kernels."""

    name: str
    # Whether it wants as many KV heads as query heads: repeated ones cost memory by the block.
    repeats_heads: bool

    def refusal(self, heads: Heads) -> str:
        """Why it cannot do these heads; empty when it can."""
        ...

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output (B, H, S, D) and its fp32 log-sum-exp (B, H, S), from k and v (B, G, K, D)."""
        ...

    def backward(
        self, gradient: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
        output: torch.Tensor, lse: torch.Tensor, is_causal: bool, scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        """Gradients of q, k, v, of this block, given output and log-sum-exp over all blocks."""
        ...


class CpuFlash:
    """`_scaled_dot_product_flash_attention_for_cpu`."""

    name = "sdpa_flash"
    repeats_heads = False

    def refusal(self, heads: Heads) -> str:
        """Why it cannot do these heads; empty when it can."""
        return "" if heads.device.type == "cpu" else "it runs on the CPU only"

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and log-sum-exp."""
        output, lse = _ATEN._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, is_causal, scale=scale
        )
        return output, lse

    def backward(
        self, gradient: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
        output: torch.Tensor, lse: torch.Tensor, is_causal: bool, scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        """Gradients of q, k, v; of a block without a mask in pieces that keep all threads at work.

        dk and dv are in fp32 then.
        """
        pieces = 1
        if q.shape[0] == 1 and not is_causal:
            pieces = query_pieces(k.shape[1], torch.get_num_threads(), q.shape[2])
        if pieces > 1:
            gradient, q, output = (_in_pieces(x, pieces) for x in (gradient, q, output))
            lse = _in_pieces(lse.unsqueeze(-1), pieces).squeeze(-1)
            k, v = (x.expand(pieces, -1, -1, -1) for x in (k, v))
        dq, dk, dv = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, q, k, v, output, lse, 0.0, is_causal, scale=scale
        )
        if pieces > 1:
            # The kernel lays gradients out by token, so that this is no copy.
            dq = dq.transpose(1, 2).flatten(0, 1).unsqueeze(0).transpose(1, 2)
            dk, dv = (x.sum(0, keepdim=True, dtype=torch.float32) for x in (dk, dv))
        return dq, dk, dv


class CudaFlash:
    """`_scaled_dot_product_flash_attention`: FlashAttention-2, from compute capability 8.0.

    Its backward expands dK and dV to all query heads inside: H / G times the block's.
    """

    name = "sdpa_flash"
    repeats_heads = False
    _LARGEST_HEAD_DIM = 256

    def refusal(self, heads: Heads) -> str:
        """Why it cannot do these heads; empty when it can."""
        if heads.device.type != "cuda":
            return "it runs on CUDA only"
        if torch.cuda.get_device_capability(heads.device) < (8, 0):
            return "it needs compute capability 8.0"
        if heads.dtype not in _HALF:
            return f"it has no {heads.dtype}"
        if heads.head_dim > self._LARGEST_HEAD_DIM or heads.head_dim % 8:
            return f"it has no head dim of {heads.head_dim}"
        return ""

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and log-sum-exp."""
        results = _ATEN._scaled_dot_product_flash_attention(
            q, k, v, 0.0, is_causal, False, scale=scale
        )
        return results[0], results[1]

    def backward(
        self, gradient: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
        output: torch.Tensor, lse: torch.Tensor, is_causal: bool, scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        """Gradients of q, k, v."""
        seed, offset = _no_randomness(q.device, torch.uint64)
        dq, dk, dv = _ATEN._scaled_dot_product_flash_attention_backward(
            gradient, q, k, v, output, lse.contiguous(), None, None, q.shape[2], k.shape[2],
            0.0, is_causal, seed, offset, scale=scale,
        )  # fmt: skip
        return dq, dk, dv


class CudaCudnn:
    """`_scaled_dot_product_cudnn_attention`; its log-sum-exp is (B, H, S, 1)."""

    name = "sdpa_cudnn"
    repeats_heads = False
    _LARGEST_HEAD_DIM = 128

    def refusal(self, heads: Heads) -> str:
        """Why it cannot do these heads; empty when it can."""
        if heads.device.type != "cuda":
            return "it runs on CUDA only"
        if torch.cuda.get_device_capability(heads.device) < (8, 0):
            return "it needs compute capability 8.0"
        if heads.dtype not in _HALF:
            return f"it has no {heads.dtype}"
        if heads.head_dim > self._LARGEST_HEAD_DIM or heads.head_dim % 8:
            return f"it has no head dim of {heads.head_dim}"
        return ""

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and log-sum-exp."""
        results = _ATEN._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, is_causal, False, scale=scale
        )
        return results[0], results[1].squeeze(-1)

    def backward(
        self, gradient: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
        output: torch.Tensor, lse: torch.Tensor, is_causal: bool, scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        """Gradients of q, k, v."""
        seed, offset = _no_randomness(q.device, torch.int64)
        dq, dk, dv = _ATEN._scaled_dot_product_cudnn_attention_backward(
            gradient, q, k, v, output, lse.contiguous().unsqueeze(-1), seed, offset,
            None, None, None, q.shape[2], k.shape[2], 0.0, is_causal, scale=scale,
        )  # fmt: skip
        return dq, dk, dv


class CudaEfficient:
    """`_scaled_dot_product_efficient_attention`: CUTLASS, from compute capability 5.0, any dtype.

    Its log-sum-exp is padded to whole groups of 32 queries, with infinity.
    """

    name = "sdpa_efficient"
    repeats_heads = True
    _LSE_GROUP = 32

    def refusal(self, heads: Heads) -> str:
        """Why it cannot do these heads; empty when it can."""
        if heads.device.type != "cuda":
            return "it runs on CUDA only"
        alignment = 4 if heads.dtype == torch.float32 else 8
        if heads.head_dim % alignment:
            return f"it has no head dim of {heads.head_dim}"
        if heads.dtype == torch.bfloat16 and torch.cuda.get_device_capability(heads.device) < (8,):
            return "bfloat16 needs compute capability 8.0"
        return ""

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and log-sum-exp."""
        k, v = (_repeated(tensor, q.shape[1]) for tensor in (k, v))
        output, lse, _, _ = _ATEN._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, is_causal, scale=scale
        )
        return output, lse[:, :, : q.shape[2]]

    def backward(
        self, gradient: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
        output: torch.Tensor, lse: torch.Tensor, is_causal: bool, scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        """Gradients of q, k, v."""
        kv_heads = k.shape[1]
        k, v = (_repeated(tensor, q.shape[1]) for tensor in (k, v))
        padding = -lse.shape[2] % self._LSE_GROUP
        lse = torch.nn.functional.pad(lse, (0, padding), value=torch.inf).contiguous()
        seed, offset = _no_randomness(q.device, torch.int64)
        dq, dk, dv, _ = _ATEN._scaled_dot_product_efficient_attention_backward(
            gradient, q, k, v, None, output, lse, seed, offset, 0.0,
            [True, True, True, False], is_causal, scale=scale,
        )  # fmt: skip
        return dq, _grouped_sum(dk, kv_heads), _grouped_sum(dv, kv_heads)


# In order of preference.
KERNELS: Sequence[Kernel] = (CudaFlash(), CudaCudnn(), CudaEfficient(), CpuFlash())


def choose_kernel(planned: str, heads: Heads) -> Kernel:
    """The first kernel of the planned name that can do these heads; any name when it is empty.

    Raises `EngineError` (BAD_MODEL) with every kernel's reason.
    """
    reasons = []
    for kernel in KERNELS:
        if planned in ("", kernel.name):
            reason = kernel.refusal(heads)
            if not reason:
                return kernel
            reasons.append(f"{type(kernel).__name__}: {reason}")
    known = ", ".join(sorted({kernel.name for kernel in KERNELS}))
    why = "; ".join(reasons) or f"the streaming executor has {known}"
    problem = f"plan.execution.attention_kernel {planned!r} cannot run this model here ({why})"
    raise EngineError(BAD_MODEL, problem, "run the profiler again and plan anew")


def _no_randomness(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Seed and offset of a generator that nothing draws from."""
    return torch.zeros(2, dtype=dtype, device=device), torch.zeros((), dtype=dtype, device=device)


def _in_pieces(tensor_1hsd: torch.Tensor, pieces: int) -> torch.Tensor:
    """(1, H, S, D) to (pieces, H, S / pieces, D): pieces of the queries, as rows; a view."""
    by_piece: torch.Tensor = tensor_1hsd[0].unflatten(1, (pieces, -1))
    return by_piece.transpose(0, 1)


def _repeated(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, G, K, D) to (B, H, K, D)."""
    groups = heads // tensor.shape[1]
    return tensor if groups == 1 else tensor.repeat_interleave(groups, dim=1)


def _grouped_sum(tensor: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """(B, H, K, D) to (B, G, K, D)."""
    if tensor.shape[1] == kv_heads:
        return tensor
    batch, heads, keys, head_dim = tensor.shape
    return tensor.view(batch, kv_heads, heads // kv_heads, keys, head_dim).sum(dim=2)
