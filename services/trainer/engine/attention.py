"""Causal attention through torch's fused kernels, and through nothing else.

Transformers hands every attention to `causal_attention` and asks `causal_mask` for masks. The mask
is always None: an (S, S) mask would cost more than the rest of a long window. What a model wants
beyond plain causal attention is refused by name.

Shapes: B batch, S tokens, H query heads, G KV heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface

from services.trainer.engine.failures import BAD_MODEL, EngineError

# Without "sdpa" or "flash" in it: transformers treats such names in ways of its own.
ATTENTION_NAME = "elite_causal"

MATH = "sdpa_math"  # builds the (S, S) matrix

# Names as in NodeProfile.software.attention_kernels.
BACKENDS = {
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
    MATH: SDPBackend.MATH,
}
# What a plan that names no kernel gets.
FUSED_BACKENDS = [backend for name, backend in BACKENDS.items() if name != MATH]

# Keyword arguments of other attention functions that change the result.
_UNSUPPORTED_ARGUMENTS = ("softcap", "s_aux", "position_bias")


def register_attention() -> None:
    """Makes `ATTENTION_NAME` known to transformers."""
    AttentionInterface.register(ATTENTION_NAME, causal_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, causal_mask)


@contextmanager
def attention_kernel(name: str) -> Iterator[None]:
    """Only the named kernel may run inside; torch raises `RuntimeError` where it cannot.

    An empty name allows every fused kernel. Raises `EngineError` for an unknown name.
    """
    if name and name not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise EngineError(
            BAD_MODEL, f"plan.execution.attention_kernel is {name!r}", f"one of {known}"
        )
    with sdpa_kernel([BACKENDS[name]] if name else FUSED_BACKENDS):
        yield


def causal_attention(
    module: torch.nn.Module,
    query_bhsd: torch.Tensor,
    key_bgsd: torch.Tensor,
    value_bgsd: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of a whole window; returns (B, S, H, D)."""
    wanted = [name for name in _UNSUPPORTED_ARGUMENTS if arguments.get(name) is not None]
    if dropout:
        wanted.append("dropout")
    if wanted or attention_mask is not None:
        what = ", ".join(wanted) or "an attention mask"
        raise EngineError(
            BAD_MODEL,
            f"{type(module).__name__} needs {what}, which the fused attention kernels do not have",
            "choose another model",
        )
    group_size = query_bhsd.shape[1] // key_bgsd.shape[1]
    if group_size > 1 and not kernels_group_heads():
        key_bgsd = key_bgsd.repeat_interleave(group_size, dim=1)
        value_bgsd = value_bgsd.repeat_interleave(group_size, dim=1)
        group_size = 1
    output = torch.nn.functional.scaled_dot_product_attention(
        query_bhsd, key_bgsd, value_bgsd, is_causal=True, scale=scaling, enable_gqa=group_size > 1
    )
    return output.transpose(1, 2).contiguous(), None


def kernels_group_heads() -> bool:
    """Whether KV heads may be fewer than query heads; the memory-efficient kernel wants as many."""
    cuda = torch.backends.cuda
    return bool(cuda.flash_sdp_enabled() or cuda.cudnn_sdp_enabled() or cuda.math_sdp_enabled())


def causal_mask(
    *,
    q_length: int,
    kv_length: int,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    **_: Any,
) -> None:
    """No mask. Raises `EngineError` (BAD_MODEL) where plain causal attention would be wrong."""
    if local_size is not None and kv_length > local_size:
        raise EngineError(
            BAD_MODEL,
            f"the model's sliding_window of {local_size:,} tokens is shorter than this tier's "
            f"window of {q_length:,}",
            "choose a lower tier or a model with full attention",
        )
    if not allow_is_causal_skip:
        raise EngineError(
            BAD_MODEL,
            "the model's attention is not plain causal attention",
            "choose another model",
        )


class AttentionRecorder(TorchDispatchMode):
    """Notes which fused attention kernels run inside it."""

    _PREFIXES: ClassVar = {
        "_scaled_dot_product_flash_attention": "sdpa_flash",
        "_scaled_dot_product_efficient_attention": "sdpa_efficient",
        "_scaled_dot_product_cudnn_attention": "sdpa_cudnn",
    }

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and looks at its name."""
        name = func._schema.name.partition("::")[2]
        self.kernels += [k for prefix, k in self._PREFIXES.items() if name.startswith(prefix)]
        return func(*args, **(kwargs or {}))
