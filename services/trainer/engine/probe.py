"""Runs a few tokens through the model to prove what the executors take for granted."""

from __future__ import annotations

from typing import Any

import torch

from services.trainer.engine.attention import MATH, AttentionRecorder, attention_kernel
from services.trainer.engine.decoder import decoder_layers, last_hidden_states
from services.trainer.engine.failures import BAD_MODEL, EngineError
from services.trainer.engine.loss import OutputHead

PROBE_TOKENS = 16
# 16-bit logits are rounded to three digits; a family with a rule of its own is off by far more.
LOGITS_TOLERANCE = 0.02


def attention_kernel_in_use(model: Any, planned: str) -> str:
    """The kernel that every layer's attention runs on; `planned` may be empty for any fused one.

    Raises `EngineError` (BAD_MODEL) when layers do not all go through the planned kernel.
    """
    try:
        with torch.no_grad(), attention_kernel(planned), AttentionRecorder() as recorder:
            last_hidden_states(model, probe_tokens(model))
    except RuntimeError as error:
        problem = f"{planned or 'no fused attention kernel'} cannot run this model here ({error})"
        raise EngineError(BAD_MODEL, problem, "run the profiler again and plan anew") from error
    if planned == MATH:  # is made of plain operations, which leave no trace of their own
        return MATH
    kernels: list[str] = recorder.kernels
    layers = len(decoder_layers(model))
    if len(kernels) != layers or len(set(kernels)) != 1:
        problem = f"{len(kernels)} fused attention calls in {layers} layers"
        raise EngineError(
            BAD_MODEL, f"{model.config.model_type}: {problem}", "choose another model"
        )
    return kernels[0]


def check_logits(model: Any, kernel: str) -> None:
    """Raises `EngineError` (BAD_MODEL) unless `OutputHead` gives the model's own logits."""
    token_ids = probe_tokens(model)
    head = OutputHead.of(model)
    with torch.no_grad(), attention_kernel(kernel):
        expected = model(input_ids=token_ids, use_cache=False).logits.float()
        logits = head.linear(last_hidden_states(model, token_ids)).float()
        head.transform_(logits)
    difference = float((logits - expected).norm() / expected.norm())
    if not difference <= LOGITS_TOLERANCE:
        name = model.config.model_type
        problem = f"{name} makes its logits in a way the tiled loss does not know"
        raise EngineError(BAD_MODEL, f"{problem} (off by {difference:.2g})", "choose another model")


def probe_tokens(model: Any) -> torch.Tensor:
    """A few token ids on the model's device, (1, S)."""
    vocabulary = model.config.get_text_config().vocab_size
    tokens: torch.Tensor = torch.arange(PROBE_TOKENS, device=model.device) % vocabulary
    return tokens[None]
