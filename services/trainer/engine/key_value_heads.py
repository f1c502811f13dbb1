"""Conversion to grouped queries: the key and value heads of each group become their mean.

The uptraining recipe of https://arxiv.org/abs/2305.13245 (section 2.1). It changes the model, so it
is only done when asked for, and its cost is measured.

`python -m services.trainer.engine.key_value_heads MODEL COUNT FOLDER` writes the converted model,
which an adapter trained on one needs.

Shapes: B batch, S tokens, G KV heads, D head dim, E hidden.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.trainer.engine.decoder import last_hidden_states
from services.trainer.engine.failures import BAD_MODEL, EngineError
from services.trainer.engine.loss import OutputHead, tiled_cross_entropy

# Enough for a loss with two digits, and seconds even for a large model on the host.
SAMPLE_TOKENS = 256
_TILE_ROWS = 64
_FIX = "plan without grouped-query-conversion"
_MISSING = torch.empty(0)  # of no parameter's shape


def convert_and_measure(model: Any, count: int, sample_bs: torch.Tensor | None) -> str:
    """Converts `model` in place; says what that did to the loss on the first tokens of a sample.

    sample_bs: (1, S) token ids. Raises `EngineError` as `convert_key_value_heads` does.
    """
    config = model.config.get_text_config()
    # The engine's attention refuses sliding windows shorter than what it is given.
    tokens = min(SAMPLE_TOKENS, getattr(config, "sliding_window", None) or SAMPLE_TOKENS)
    samples = [] if sample_bs is None else [sample_bs[:, :tokens].to(model.device)]
    before = [_loss(model, sample) for sample in samples]
    old_count = convert_key_value_heads(model, count)
    done = f"key-value heads: {old_count} to {count} by mean pooling"
    for loss, sample in zip(before, samples, strict=True):
        size = f"{sample.shape[1]} tokens of your data"
        done += f"; loss {loss:.2f} before, {_loss(model, sample):.2f} after, on {size}"
    return done


@torch.no_grad()
def _loss(model: Any, token_ids_bs: torch.Tensor) -> float:
    hidden_se = last_hidden_states(model, token_ids_bs)[0]
    head = OutputHead.of(model)
    return float(tiled_cross_entropy(hidden_se[:-1], token_ids_bs[0, 1:], head, _TILE_ROWS))


def convert_key_value_heads(model: Any, count: int) -> int:
    """Gives a Hugging Face causal language model `count` KV heads, in place; returns the old count.

    Its modules are replaced by those of the same configuration with `count` heads, which take its
    parameters over: only pooled ones are new. Raises `EngineError` (BAD_MODEL), with the model as
    it was, for a count that does not divide the heads, and for a model in which anything depends on
    the number of heads but the rows of linears and of norms over all heads.
    """
    heads, head_dim = _checked_heads(model, count)
    config = copy.deepcopy(model.config)
    config.get_text_config().num_key_value_heads = count
    with torch.device("meta"):
        converted = type(model)._from_config(config, dtype=model.dtype)
    pooled = _pooled_names(model, converted, heads * head_dim, count * head_dim)
    originals = dict(model.named_modules())
    for module_name, module in converted.named_modules():
        original = originals.get(module_name, module)
        for name in list(original._parameters):
            parameter = original._parameters.pop(name)  # pooled ones are let go of one by one
            if _joined(module_name, name) in pooled:
                parameter = _mean_of_groups(parameter, heads, count)
            module._parameters[name] = parameter
        module._buffers.update(original._buffers)
    for name, child in converted.named_children():
        setattr(model, name, child.train(model.training))
    model._parameters.update(converted._parameters)
    model.config = config
    return heads


def _checked_heads(model: Any, count: int) -> tuple[int, int]:
    """KV heads of the model, and channels of each."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None)
    if not isinstance(heads, int):
        problem = f"{config.model_type} has no num_key_value_heads in its configuration"
        raise EngineError(BAD_MODEL, problem, _FIX)
    if not 0 < count <= heads or heads % count:
        problem = f"plan.execution.key_value_head_count {count} does not divide the model's {heads}"
        raise EngineError(BAD_MODEL, problem, f"give a divisor of {heads}")
    head_dim = getattr(config, "head_dim", None)
    return heads, head_dim or config.hidden_size // config.num_attention_heads


def _pooled_names(model: Any, converted: Any, width: int, new_width: int) -> set[str]:
    """Parameters that have `width` rows in the model and `new_width` in the converted one.

    Everything else must be the same in both: fused projections, or a norm for each head, are not.
    """
    before, after = _tensors(model), _tensors(converted)
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    pooled = set()
    for name in before | after:
        old, new = before.get(name, _MISSING), after.get(name, _MISSING)
        if old.shape == new.shape:
            continue
        # A parameter of one dimension that is no linear's is a norm over all heads.
        is_rows = isinstance(old, nn.Parameter) and (
            old.ndim == 1 or name.rpartition(".")[0] in linears
        )
        if not is_rows or len(old) != width or new.shape != (new_width, *old.shape[1:]):
            problem = f"{model.config.model_type}: {name} cannot be pooled by key-value heads"
            raise EngineError(BAD_MODEL, problem, _FIX)
        pooled.add(name)
    if not pooled and width != new_width:
        problem = f"{model.config.model_type}: no parameter depends on num_key_value_heads"
        raise EngineError(BAD_MODEL, problem, _FIX)
    return pooled


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name; tied ones under all their names."""
    return {
        _joined(module_name, name): tensor
        for module_name, module in model.named_modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def _joined(module_name: str, name: str) -> str:
    return f"{module_name}.{name}" if module_name else name


def _mean_of_groups(parameter: nn.Parameter, heads: int, count: int) -> nn.Parameter:
    """(G*D, ...) to (count*D, ...). Consecutive heads are a group, as they are for queries."""
    grouped = parameter.detach().unflatten(0, (count, heads // count, -1))
    mean = grouped.mean(1, dtype=torch.float32).to(parameter.dtype)
    return nn.Parameter(mean.flatten(0, 1), requires_grad=parameter.requires_grad)


def write_converted(location: str, count: int, folder: Path) -> None:
    """Writes a Hugging Face model, converted, with its tokenizer.

    Raises `EngineError` as `convert_key_value_heads` does, and what transformers raises for a model
    it cannot read.
    """
    model = AutoModelForCausalLM.from_pretrained(
        location, dtype="auto", use_safetensors=True, trust_remote_code=False
    )
    convert_key_value_heads(model, count)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """The command line. Ends the process with a message for a model that cannot be converted."""
    parser = argparse.ArgumentParser(description="Writes a model with fewer key-value heads.")
    parser.add_argument("model", help="a Hugging Face folder or hub id")
    parser.add_argument("count", type=int, help="key-value heads, a divisor of the model's")
    parser.add_argument("folder", type=Path, help="where the converted model goes")
    arguments = parser.parse_args()
    try:
        write_converted(arguments.model, arguments.count, arguments.folder)
    except (EngineError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
