"""Causal attention through torch's fused kernels, and through nothing else.

Transformers hands every attention to `causal_attention` and asks `causal_mask` for masks. There is
none: an (S, S) mask would cost more than the rest of a long window. What a layer wants beyond plain
causal attention is refused by name, and so is whatever is not known to leave the result alone.

Shapes: B batch, S tokens, H query heads, G KV heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

# Keyword arguments of attention functions that do not change the result.
_HARMLESS = frozenset({
    "cache_position", "num_items_in_batch", "output_attentions", "output_hidden_states",
    "output_router_logits", "position_embeddings", "position_ids", "return_dict", "use_cache",
})  # fmt: skip
_KNOWN = _HARMLESS | {"dropout", "is_causal"}


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
    attention_mask: Any,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of a whole window; returns (B, S, H, D)."""
    wanted = beyond_causal(module, arguments)
    fix = "choose another model"
    if isinstance(attention_mask, str):
        wanted.append(attention_mask)
        fix = "choose a lower tier or a model with full attention"
    elif attention_mask is not None:
        wanted.append("a mask of its own making")
    elif sliding_window and sliding_window < query_bhsd.shape[2]:
        wanted.append(f"a sliding_window of {sliding_window:,} tokens that its mask does not have")
    if wanted:
        raise EngineError(
            BAD_MODEL,
            f"{type(module).__name__} needs {', '.join(wanted)}, which the fused attention kernels "
            f"do not have",
            fix,
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


def beyond_causal(module: torch.nn.Module, arguments: Mapping[str, Any]) -> list[str]:
    """What a call of an attention function wants, beside its mask, that is not plain causal."""
    given = [name for name, value in arguments.items() if value is not None]
    wanted = sorted(name for name in given if name not in _KNOWN)
    if arguments.get("dropout"):
        wanted.append("dropout")
    if arguments.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        wanted.append("attention that is not causal")
    return wanted


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
) -> str | None:
    """No mask; where a window is shorter than all tokens, its name: refused if a layer uses it.

    Raises `EngineError` (BAD_MODEL) for a mask that is something else.
    """
    if local_size is not None and kv_length > local_size:
        return (
            f"a sliding_window of {local_size:,} tokens (or attention_chunk_size), shorter than "
            f"this tier's window of {q_length:,}"
        )
    if not allow_is_causal_skip:
        raise EngineError(
            BAD_MODEL,
            "the model's attention is not plain causal attention",
            "choose another model",
        )
    return None


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
