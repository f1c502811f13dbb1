"""LoRA adapters (https://arxiv.org/abs/2106.09685) through PEFT: make, read, save."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from elite.planner.v1 import planner_pb2
from services.trainer.engine.decoder import decoder_layers
from services.trainer.engine.failures import BAD_MODEL, DIVERGED, EngineError

WEIGHTS_FILE = "adapter_model.safetensors"
_CONVERTED_BASE = "{} with {} key-value heads, see README.md"
# A model card: https://huggingface.co/docs/hub/model-cards
_CONVERTED_README = """\
---
library_name: peft
base_model: {base_model}
key_value_head_count: {count}
---
This adapter fits {base_model} with its key-value heads pooled to {count}, not the model as it was.
Write that model once:

    python -m services.trainer.engine.key_value_heads {base_model} {count} converted-model

and load the adapter onto it:

    model = AutoModelForCausalLM.from_pretrained("converted-model")
    model = PeftModel.from_pretrained(model, "this folder")
"""


def add_adapters(model: Any, lora: planner_pb2.Lora, compute_dtype: torch.dtype, seed: int) -> Any:
    """The model with adapters on `lora.target_modules`, in the compute dtype or the plan's own.

    Those of its decoder layers only: in a part for pictures, say, they would get no gradient. PEFT
    starts A at random, the same on every device for the same seed, and B at zero. Raises
    `EngineError` (BAD_MODEL) for a target that is not in the layers, or that PEFT does not adapt.
    """
    inside = {module for layer in decoder_layers(model) for module in layer.modules()}
    named = dict(model.named_modules())
    present = {name.rpartition(".")[2] for name, module in named.items() if module in inside}
    missing = [name for name in lora.target_modules if name not in present]
    if missing:
        problem = f"plan.lora.target_modules names {', '.join(missing)}, which no decoder layer has"
        raise EngineError(BAD_MODEL, problem, "plan again with this model's config.json")
    torch.manual_seed(seed)
    outside = [
        name for name, module in named.items()
        if module not in inside and name.rpartition(".")[2] in lora.target_modules
    ]  # fmt: skip
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.target_modules),
        exclude_modules=outside or None,
        lora_dropout=lora.dropout, bias="none", task_type="CAUSAL_LM",
    )  # fmt: skip
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        problem = f"plan.lora.target_modules {list(lora.target_modules)}: {error}"
        raise EngineError(BAD_MODEL, problem, "choose other target modules") from error
    dtype = torch.float32 if lora.dtype == planner_pb2.DTYPE_FLOAT32 else compute_dtype
    for parameter in trainable_parameters(adapted):
        parameter.data = parameter.data.to(dtype)
    return _with_dropout(adapted.eval())


def _with_dropout(adapted: Any) -> Any:
    """Dropout is on in adapters, and nowhere else."""
    for name, module in adapted.named_modules():
        if isinstance(module, torch.nn.Dropout) and ".lora_dropout." in name:
            module.train()
    return adapted


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Adapters drop nothing inside: an evaluation says the same each time."""
    dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.training]
    for module in dropouts:
        module.eval()
    try:
        yield
    finally:
        for module in dropouts:
            module.train()


def trainable_parameters(model: Any) -> list[torch.nn.Parameter]:
    """The adapters' parameters, in a fixed order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def write_adapter_weights(model: Any, folder: Path) -> None:
    """Writes the adapters' weights under PEFT's names.

    Raises `EngineError` (DIVERGED) for weights that are not finite: no file says so by itself.
    """
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    broken = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        problem = f"the adapter is not finite in {broken[0]}"
        fix = "lower training.learning_rate; earlier checkpoints are kept"
        raise EngineError(DIVERGED, problem, fix)
    # A copy: PEFT's tensors may share storage with one another, which safetensors refuses.
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(on_host, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def read_adapter_weights(model: Any, folder: Path) -> None:
    """Puts back what `write_adapter_weights` wrote."""
    set_peft_model_state_dict(model, load_file(folder / WEIGHTS_FILE))


def write_adapter(
    model: Any, base_model: str, folder: Path, *, key_value_head_count: int = 0
) -> None:
    """Writes the adapter as `PeftModel.from_pretrained` reads it, for `base_model`.

    key_value_head_count: heads the base was converted to; README.md then says how to get that base.
    """
    write_adapter_weights(model, folder)
    config = copy.copy(model.peft_config["default"])
    config.base_model_name_or_path = base_model
    if key_value_head_count:
        readme = _CONVERTED_README.format(base_model=base_model, count=key_value_head_count)
        (folder / "README.md").write_text(readme, encoding="utf-8")
        # Nothing that loads by name may put the adapter on the model as it was.
        config.base_model_name_or_path = _CONVERTED_BASE.format(base_model, key_value_head_count)
    config.inference_mode = True
    config.save_pretrained(folder)
