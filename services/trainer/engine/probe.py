"""Runs a few tokens through the model to prove what the executors take for granted."""

from __future__ import annotations

from typing import Any

import torch

from services.trainer.engine.attention import MATH, AttentionRecorder, attention_kernel
from services.trainer.engine.decoder import decoder_layers, last_hidden_states
from services.trainer.engine.failures import BAD_MODEL, EngineError
from services.trainer.engine.loss import OutputHead

PROBE_TOKENS = 16
# Relative rounding: right heads are off by 1.4e-7, 3.5e-4 and 2.9e-3 at the most. A family with a
# rule of its own may be off by little on a few tokens.
_LOGITS_TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 6e-3}
# What other code of transformers raises when it is given what it does not expect.
NOT_AS_GIVEN = (AttributeError, IndexError, KeyError, TypeError, ValueError)


def attention_kernel_in_use(model: Any, planned: str) -> str:
    """The kernel that every layer's attention runs on; `planned` may be empty for any fused one.

    Raises `EngineError` (BAD_MODEL) when layers do not all go through the planned kernel.
    """
    try:
        with torch.no_grad(), attention_kernel(planned), AttentionRecorder() as recorder:
            last_hidden_states(model, probe_tokens(model))
    except RuntimeError as error:
        problem = f"{planned or 'no fused attention kernel'} cannot run this model here ({error})"
        fix = "choose another model; if torch or the driver changed, profile again and plan anew"
        raise EngineError(BAD_MODEL, problem, fix) from error
    except NOT_AS_GIVEN as error:
        problem = f"{model.config.model_type} cannot be called as the engine calls it ({error!r})"
        raise EngineError(BAD_MODEL, problem, "choose another model") from error
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


def check_loss(model: Any, kernel: str) -> None:
    """Raises `EngineError` (BAD_MODEL) unless the tiled loss is the model's own.

    That is, `OutputHead` gives its logits, and its loss is their cross-entropy and nothing else.
    """
    token_ids = probe_tokens(model)
    head = OutputHead.of(model)
    with torch.no_grad(), attention_kernel(kernel):
        own = model(input_ids=token_ids, labels=token_ids, use_cache=False)
        logits = head.linear(last_hidden_states(model, token_ids)).float()
        head.transform_(logits)
    expected, name = own.logits.float(), model.config.model_type
    difference = float((logits - expected).norm() / expected.norm())
    if not difference <= _LOGITS_TOLERANCES[head.weight_ve.dtype]:
        problem = f"{name} makes its logits in a way the tiled loss does not know"
        raise EngineError(BAD_MODEL, f"{problem} (off by {difference:.2g})", "choose another model")
    loss = float(torch.nn.functional.cross_entropy(expected[0, :-1], token_ids[0, 1:]))
    difference = abs(float(own.loss) / loss - 1)
    if not difference <= _LOGITS_TOLERANCES[own.loss.dtype]:
        problem = f"{name}'s loss is not the cross-entropy of the next token alone"
        fix = "choose another model; of a router's loss, set output_router_logits to false"
        raise EngineError(BAD_MODEL, f"{problem} (off by {difference:.2g})", fix)


def probe_tokens(model: Any) -> torch.Tensor:
    """A few token ids on the model's device, (1, S)."""
    vocabulary = model.config.get_text_config().vocab_size
    tokens: torch.Tensor = torch.arange(PROBE_TOKENS, device=model.device) % vocabulary
    return tokens[None]
