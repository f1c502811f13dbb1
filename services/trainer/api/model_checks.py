"""Checks a model folder against the plan, without loading a weight."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elite.planner.v1 import planner_pb2
from services.common.errors import FieldViolation, invalid_field, invalid_fields
from services.trainer.jobs.roots import MODEL_ROOTS, resolve_folder

_FIELD = "spec.model_path"
_LARGEST_CONFIG_BYTES = 1 << 20

# The plan's name of a size, and the names it goes by in config.json.
_SIZES = {
    "layer_count": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "intermediate_size": ("intermediate_size", "n_inner"),
    "query_head_count": ("num_attention_heads", "n_head"),
    "key_value_head_count": ("num_key_value_heads",),
    "vocabulary_size": ("vocab_size",),
}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "spiece.model",
)


def check_model_path(
    model_path: str, model: planner_pb2.ModelSummary, roots: tuple[Path, ...]
) -> None:
    """Raises `ServiceError` naming `spec.model_path`, what is wrong with it, and the fix.

    Blocks on the file system: call it from a thread.
    """
    folder = resolve_folder(_FIELD, model_path, roots, MODEL_ROOTS)
    config = _read_config(folder)
    violations = [*_disagreements(config, model), *_missing_files(folder)]
    if violations:
        raise invalid_fields(violations)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        if path.stat().st_size > _LARGEST_CONFIG_BYTES:
            raise invalid_field(_FIELD, f"{path} is larger than 1 MiB", "is it a model's?")
        config = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        fix = "a folder in Hugging Face format"
        raise invalid_field(_FIELD, f"{folder} has no config.json", fix) from error
    except OSError as error:
        problem = f"{path} cannot be read ({error.strerror})"
        raise invalid_field(_FIELD, problem, "let the trainer's user read it") from error
    except ValueError as error:
        raise invalid_field(_FIELD, f"{path} is not JSON ({error})", "repair the file") from error
    if not isinstance(config, dict):
        raise invalid_field(_FIELD, f"{path} is not a JSON object", "repair the file")
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def _disagreements(
    config: dict[str, Any], model: planner_pb2.ModelSummary
) -> Iterator[FieldViolation]:
    fix = "plan for this model (its config.json), or give the folder of the planned one"
    model_type = config.get("model_type")
    if model.model_type and model_type != model.model_type:
        problem = f"config.json says model_type {model_type!r}, the plan {model.model_type!r}"
        yield FieldViolation(_FIELD, problem, fix)
        return
    for size, names in _SIZES.items():
        planned = getattr(model, size)
        found = next((config[name] for name in names if config.get(name) is not None), planned)
        if planned and found != planned:
            yield FieldViolation(
                _FIELD, f"config.json says {names[0]} {found}, the plan {planned}", fix
            )


def _missing_files(folder: Path) -> Iterator[FieldViolation]:
    if not any(folder.glob("*.safetensors")):
        yield FieldViolation(_FIELD, f"{folder} has no *.safetensors", "save the model with them")
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        yield FieldViolation(_FIELD, f"{folder} has no tokenizer", "save its tokenizer there")
