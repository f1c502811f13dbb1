"""What the streaming executor has to know about a model, found by running two tokens through it.

Shapes: B batch, C tokens, H query heads, G KV heads, D head dim, E hidden.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
from torch import nn

from services.trainer.engine.adapters import trainable_parameters
from services.trainer.engine.failures import BAD_MODEL, EngineError
from services.trainer.engine.probe import NOT_AS_GIVEN
from services.trainer.engine.streaming.attention_calls import attention
from services.trainer.engine.streaming.kernels import Heads
from services.trainer.engine.streaming.model_parts import ModelParts
from services.trainer.engine.streaming.unread_outputs import unread_linears

_PROBE_TOKENS = 2
_HIDDEN_DIMENSIONS = 3


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Heads of attention, the residual stream, and adapters and unread modules of every layer."""

    heads: Heads
    adapters: list[list[nn.Parameter]]
    # Of which backward needs no values.
    unread: list[list[nn.Linear]]
    hidden_size: int
    dtype: torch.dtype


@dataclass
class HeadRecorder:
    """Attention that notes what it is called with and returns the query."""

    heads: list[Heads] = field(default_factory=list)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        window: int | None, scale: float,  # noqa: ARG002
    ) -> torch.Tensor:  # fmt: skip
        """The query, for want of anything better."""
        if not query.dtype == key.dtype == value.dtype:
            raise _refused("has queries, keys and values of different dtypes")
        _, query_heads, _, head_dim = query.shape
        heads = Heads(query.device, query.dtype, query_heads, key.shape[1], head_dim)
        self.heads.append(heads)
        return query.transpose(1, 2)


class _Reader:
    """Attention as far as reading goes."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        window: int | None, scale: float,  # noqa: ARG002
    ) -> torch.Tensor:  # fmt: skip
        """Something of the output's shape that takes queries, keys and values."""
        return query.transpose(1, 2) * key.sum() * value.sum()


def examine(parts: ModelParts, device: torch.device) -> Anatomy:
    """Raises `EngineError` (BAD_MODEL) for a model that cannot be run in parts."""
    token_ids = torch.zeros((1, _PROBE_TOKENS), dtype=torch.int64, device=device)
    recorder = HeadRecorder()
    try:
        with torch.no_grad(), attention(recorder):
            parts.whole(token_ids)
        embeddings, _ = parts.call_of(len(parts.layers) - 1, token_ids, begin=0)
    # It opens the mask, takes no position ids, or passes more than hidden states between layers.
    except NOT_AS_GIVEN as error:
        raise _refused(f"cannot be called in parts ({error!r})") from error
    if embeddings.dim() != _HIDDEN_DIMENSIONS:
        raise _refused(f"gives its layers hidden states of {embeddings.dim()} dimensions")
    if len(recorder.heads) != len(parts.layers):
        calls = f"{len(recorder.heads)} attention calls in {len(parts.layers)} layers"
        raise _refused(f"makes {calls}")
    if len(set(recorder.heads)) != 1:
        raise _refused("has layers with different attention heads")
    with attention(_Reader()):
        unread = [_unread(parts, layer, token_ids) for layer in range(len(parts.layers))]
    adapters = [trainable_parameters(layer) for layer in parts.layers]
    return Anatomy(recorder.heads[0], adapters, unread, embeddings.shape[-1], embeddings.dtype)


def _unread(parts: ModelParts, layer: int, token_ids: torch.Tensor) -> list[nn.Linear]:
    run = functools.partial(parts.run, layer, *parts.call_of(layer, token_ids, begin=0))
    return unread_linears(parts.layers[layer], run)


def _refused(problem: str) -> EngineError:
    fix = "choose another model, or a plan with the resident executor"
    return EngineError(BAD_MODEL, f"the model {problem}: the streaming executor cannot run it", fix)
