"""Measures what a lossy codec does to the gradients, before a run relies on it.

Exact and encoded gradients of the same tokens are compared, as one vector each: training goes where
their sum points. The tokens are as many as exact stores have room for where the encoded ones of the
whole window will be, so that the check never takes more memory than the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch

from services.trainer.engine.executors.streaming import StreamingExecutor
from services.trainer.engine.failures import BAD_MODEL, EngineError
from services.trainer.engine.streaming.codecs import EXACT
from services.trainer.engine.streaming.settings import StreamingSettings

# Below it the codec's error is no longer noise beside that of a small batch.
LOWEST_COSINE = 0.9
_MOST_CHUNKS = 4


def check_codec(
    model: Any, parameters: Sequence[torch.nn.Parameter], settings: StreamingSettings,
    window_bs: torch.Tensor,
) -> str:  # fmt: skip
    """What was measured, for people; empty where layer inputs are exact.

    Raises `EngineError` (BAD_MODEL) when the gradients point elsewhere.
    """
    codec = settings.layer_input_codec
    if codec is EXACT:
        return ""
    tokens, cosine = gradient_cosine(model, parameters, settings, window_bs)
    found = f"gradient cosine {cosine:.4f} against exact layer inputs on {tokens:,} tokens"
    if not cosine >= LOWEST_COSINE:
        problem = f"layer inputs in {codec.name}: {found}, which is below {LOWEST_COSINE}"
        raise EngineError(BAD_MODEL, problem, "plan without this codec in --allow")
    return f"layer inputs in {codec.name}: {found}"


def gradient_cosine(
    model: Any, parameters: Sequence[torch.nn.Parameter], settings: StreamingSettings,
    window_bs: torch.Tensor,
) -> tuple[int, float]:  # fmt: skip
    """How many tokens at the window's end were tried, and the cosine of the two gradients."""
    tokens = _sample_tokens(settings)
    sample = replace(
        settings, tokens=tokens, target_tokens=min(settings.target_tokens, tokens // 2),
        chunk_tokens=min(settings.chunk_tokens, tokens),
    )  # fmt: skip
    sample_bs = window_bs[:, -tokens:]
    exact = _gradient(model, parameters, replace(sample, layer_input_codec=EXACT), sample_bs)
    encoded = _gradient(model, parameters, sample, sample_bs)
    return tokens, float(torch.nn.functional.cosine_similarity(exact, encoded, dim=0))


def _sample_tokens(settings: StreamingSettings) -> int:
    elements = 2**16
    share = settings.layer_input_codec.size_bytes(elements, torch.bfloat16) / (2 * elements)
    return max(2, min(int(settings.tokens * share), _MOST_CHUNKS * settings.chunk_tokens))


def _gradient(
    model: Any, parameters: Sequence[torch.nn.Parameter], settings: StreamingSettings,
    window_bs: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """All adapters' gradients, fp32, one after another."""
    _backward(model, settings, window_bs)
    found = [p.grad.float().flatten() for p in parameters if p.grad is not None]
    for parameter in parameters:
        parameter.grad = None
    return torch.cat(found)


def _backward(model: Any, settings: StreamingSettings, window_bs: torch.Tensor) -> None:
    """Leaves gradients, and nothing else: the executor's memory and page files go before more."""
    with closing(StreamingExecutor(model, settings)) as executor:
        executor.backward(window_bs, 1.0)
