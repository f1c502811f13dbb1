"""Where things are in a Hugging Face causal language model, whatever its family."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from services.trainer.engine.failures import BAD_MODEL, EngineError


def backbone(model: Any) -> Any:
    """The model without its head: token ids to the hidden states after the final norm.

    Raises `EngineError` (BAD_MODEL) where transformers finds none.
    """
    if model.base_model is model:
        problem = f"{model.config.model_type} has no part of its own without the head"
        raise EngineError(BAD_MODEL, problem, "choose another model")
    return model.base_model


def decoder_layers(model: Any) -> nn.ModuleList:
    """The stack of decoder layers. Raises `EngineError` (BAD_MODEL) when there is none.

    Other parts of a model, such as one for pictures, may have as many.
    """
    count = model.config.get_text_config().num_hidden_layers
    part = backbone(model)
    decoder = part.get_decoder() if hasattr(part, "get_decoder") else part
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise EngineError(
        BAD_MODEL,
        f"{model.config.model_type} has no list of {count} decoder layers (num_hidden_layers)",
        "choose another model",
    )


def linear_modules(layer: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Every linear module inside a decoder layer, with its parent and its name there."""
    return [
        (parent, name, child)
        for parent in layer.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]


def last_hidden_states(model: Any, token_ids_bs: torch.Tensor) -> torch.Tensor:
    """(B, S) token ids to (B, S, E) hidden states after the final norm."""
    hidden: torch.Tensor = backbone(model)(input_ids=token_ids_bs, use_cache=False)[0]
    return hidden
