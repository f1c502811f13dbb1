"""Proves on a few tokens that a model run in parts is the model run whole.

A layer that carries something from token to token beside attention (a convolution, a recurrent
state) would lose it between chunks; nothing but the result tells.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from services.trainer.engine.attention import ATTENTION_NAME, attention_kernel
from services.trainer.engine.decoder import last_hidden_states
from services.trainer.engine.executors.streaming import StreamingExecutor
from services.trainer.engine.failures import BAD_MODEL, EngineError
from services.trainer.engine.probe import probe_tokens
from services.trainer.engine.streaming.settings import StreamingSettings

_CHUNK_TOKENS = 5  # the last of 16 tokens is a ragged chunk
# Rounding of 16-bit activations, and of fp32 ones; a lost state is off by far more.
_TOLERANCES = {torch.float32: 1e-3}
_TOLERANCE_16_BIT = 0.05


def check_streaming(model: Any, settings: StreamingSettings) -> str:
    """Name of the attention kernel in use; leaves the model with the streaming attention.

    Raises `EngineError` (BAD_MODEL) unless the executor's hidden states are the model's own.
    """
    token_ids_bs = probe_tokens(model)
    model.set_attn_implementation(ATTENTION_NAME)
    with torch.no_grad(), attention_kernel(settings.attention_kernel):
        expected = last_hidden_states(model, token_ids_bs).float()
    tokens = token_ids_bs.shape[1]
    small = replace(
        settings, tokens=tokens, target_tokens=tokens - 1, chunk_tokens=_CHUNK_TOKENS,
        layer_inputs_on_host=False, attention_outputs_on_host=False,
        hidden_gradients_on_host=False,
    )  # fmt: skip
    executor = StreamingExecutor(model, small)
    found = executor.last_hidden_states(token_ids_bs).float()
    difference = float((found - expected).norm() / expected.norm())
    if not difference <= _TOLERANCES.get(model.dtype, _TOLERANCE_16_BIT):
        name = model.config.model_type
        problem = f"{name} run in chunks is not {name} run whole (off by {difference:.2g})"
        fix = "choose another model, or a plan with the resident executor"
        raise EngineError(BAD_MODEL, problem, fix)
    return executor.attention_kernel
