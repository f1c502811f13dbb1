"""What the model's layers call for attention, and what they may ask of it.

The mask argument carries a `CausalMask`: transformers hands it through, unopened, from where the
model makes its masks to where it attends, so every layer's own rule arrives with the call. Whatever
is not known to leave the result alone is refused by name.

Shapes: B batch, C tokens of a chunk, H query heads, G KV heads, D head dim.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from services.trainer.engine.attention import beyond_causal
from services.trainer.engine.failures import BAD_MODEL, INTERNAL, EngineError

# Without "sdpa" or "flash" in it: transformers treats such names in ways of its own.
STREAMING_ATTENTION = "elite_stream"


@dataclass(frozen=True, slots=True)
class CausalMask:
    """Each query sees its own key and the window - 1 before it; None: all before it."""

    window: int | None = None


class Attention(Protocol):
    """Computes one call of a layer."""

    def attend(
        self,
        query_bhcd: torch.Tensor,
        key_bgcd: torch.Tensor,
        value_bgcd: torch.Tensor,
        window: int | None,
        scale: float,
    ) -> torch.Tensor:
        """The output, (B, C, H, D)."""
        ...


_in_use: list[Attention] = []


@contextmanager
def attention(implementation: Attention) -> Iterator[None]:
    """Inside, the layers' attention calls go to `implementation`."""
    _in_use.append(implementation)
    try:
        yield
    finally:
        _in_use.pop()


def register_streaming_attention() -> None:
    """Makes `STREAMING_ATTENTION` known to transformers."""
    AttentionInterface.register(STREAMING_ATTENTION, _attention_function)
    AttentionMaskInterface.register(STREAMING_ATTENTION, _mask_function)


def _attention_function(
    module: torch.nn.Module,
    query_bhcd: torch.Tensor,
    key_bgcd: torch.Tensor,
    value_bgcd: torch.Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    wanted = beyond_causal(module, arguments)
    if not isinstance(attention_mask, CausalMask):
        is_named = isinstance(attention_mask, str)
        wanted.append(attention_mask if is_named else "a mask of its own making")
    elif sliding_window and sliding_window != attention_mask.window:
        wanted.append(f"a sliding_window of {sliding_window} that its mask does not have")
    if key_bgcd.shape != value_bgcd.shape or query_bhcd.shape[3] != key_bgcd.shape[3]:
        wanted.append("keys and values of different sizes")
    if wanted:
        raise _refused(f"{type(module).__name__} needs {', '.join(wanted)}")
    if not _in_use:
        raise EngineError(INTERNAL, "the streaming attention was called outside a streaming step")
    scale = query_bhcd.shape[-1] ** -0.5 if scaling is None else scaling
    window = attention_mask.window
    return _in_use[-1].attend(query_bhcd, key_bgcd, value_bgcd, window, scale), None


def _mask_function(
    *,
    mask_function: Callable[..., Any],
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    **_: Any,
) -> CausalMask | str:
    """The rule behind the mask; a string for another one, refused only where a layer uses it."""
    if allow_is_causal_skip and mask_function is causal_mask_function and local_size is None:
        return CausalMask()
    if allow_is_causal_skip and local_size and _is_sliding(mask_function, local_size):
        return CausalMask(local_size)
    return "a mask that is neither causal nor a sliding window"


def _is_sliding(mask_function: Callable[..., Any], window: int) -> bool:
    """Whether this is transformers' own sliding-window rule, and not chunked attention, say."""
    return _made_of(mask_function) == _made_of(sliding_window_causal_mask_function(window))


def _made_of(mask_function: Callable[..., Any]) -> list[tuple[Any, Any]]:
    """Code and captured values of the functions that a composed mask function asks."""
    parts = inspect.getclosurevars(mask_function).nonlocals.get("mask_functions", ())
    return [(part.__code__, inspect.getclosurevars(part).nonlocals) for part in parts]


def _refused(problem: str) -> EngineError:
    return EngineError(
        BAD_MODEL, f"{problem}, which block attention does not have", "choose another model"
    )
