"""Weights stay in their files until they are where they go, whatever dtype they are stored in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from elite.planner.v1 import planner_pb2
from services.trainer.engine.apply_plan import apply_plan
from services.trainer.engine.compute_dtype import move_to
from services.trainer.engine.models import DTYPES, load_model
from tests.fixtures.engine import LLAMA_LINEARS, a_plan, tiny_config, tiny_model, write_tiny_model
from tests.fixtures.engine_process import ROOT

CPU = torch.device("cpu")
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen3": {}, "phi": {}, "phi3": {}, "gemma": {}, "gpt_neox": {}, "cohere": {},
    "gemma3_text": {"sliding_window": 64}, "olmo2": {}, "granite": {},
}  # fmt: skip
_MEGABYTE = 10**6
# Of a process that maps a file and converts nothing; the weights are 160 MB in fp32.
MOST_GROWTH_BYTES = 25 * _MEGABYTE
LARGE = {
    "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8,
    "head_dim": 128,
}  # fmt: skip

GROWTH = """
import json, sys
from pathlib import Path
from google.protobuf import json_format
from elite.planner.v1 import planner_pb2
from services.trainer.engine.models import load_model, weights_fingerprint

def anonymous_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

plan = json_format.Parse(sys.argv[2], planner_pb2.Plan())
load_model(sys.argv[3], plan)
before = anonymous_bytes()
model = load_model(sys.argv[1], plan)
weights_fingerprint(model)
print(json.dumps([anonymous_bytes() - before, sum(p.nbytes for p in model.parameters())]))
"""


def stored_as(folder: Path, dtype: torch.dtype, family: str = "llama", **overrides: Any) -> Path:
    tiny_model(family, **overrides).to(dtype).save_pretrained(folder)
    return folder


def tensors(model: Any) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("compute", ["BFLOAT16", "FLOAT16", "FLOAT32"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_becomes_what_it_is_when_it_is_read_in_the_compute_dtype(
    family: str, stored: torch.dtype, compute: str, tmp_path: Path
) -> None:
    overrides = FAMILIES[family]
    folder = stored_as(tmp_path, stored, family, **overrides)
    plan = a_plan(
        tiny_config(family, **overrides), ["any"],
        compute_dtype=planner_pb2.Dtype.Value(f"DTYPE_{compute}"),
    )  # fmt: skip
    dtype = DTYPES[plan.execution.compute_dtype]
    model = load_model(str(folder), plan)
    move_to(model, CPU, dtype)
    wanted = tensors(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype))
    found = tensors(model)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert model.config.dtype == dtype


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_it_is_read_as_it_is_stored(stored: torch.dtype, tmp_path: Path) -> None:
    folder = stored_as(tmp_path, stored)
    config = json.loads((folder / "config.json").read_text())
    # Which says something else.
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float64"}))
    model = load_model(str(folder), a_plan(tiny_config(), LLAMA_LINEARS))
    assert {parameter.dtype for parameter in model.parameters()} == {stored}


def test_of_several_dtypes_most_weights_decide(tmp_path: Path) -> None:
    folder = stored_as(tmp_path, torch.bfloat16)
    path = folder / "model.safetensors"
    weights = {
        name: tensor.float() if "norm" in name else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})
    model = load_model(str(folder), a_plan(tiny_config(), LLAMA_LINEARS))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_dtype_that_no_layer_computes_in_is_not_kept(tmp_path: Path) -> None:
    folder = stored_as(tmp_path, torch.float64)
    plan = a_plan(tiny_config(), LLAMA_LINEARS, compute_dtype=planner_pb2.DTYPE_BFLOAT16)
    model = load_model(str(folder), plan)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_nf4_is_made_of_weights_in_the_compute_dtype(tmp_path: Path) -> None:
    """So that it does not depend on how they are stored, nor the memory that undoing it takes."""
    plan = a_plan(
        tiny_config(hidden_size=64), LLAMA_LINEARS, compute_dtype=planner_pb2.DTYPE_BFLOAT16,
        base_precision=planner_pb2.BASE_PRECISION_NF4,
    )  # fmt: skip
    model = load_model(str(stored_as(tmp_path / "32", torch.float32, hidden_size=64)), plan)
    in_16_bits = tmp_path / "16"
    AutoModelForCausalLM.from_pretrained(tmp_path / "32", dtype=torch.bfloat16).save_pretrained(
        in_16_bits
    )
    other = load_model(str(in_16_bits), plan)
    one, other = (apply_plan(made, plan, CPU, seed=1).model for made in (model, other))
    found, wanted = (dict(made.named_parameters()) for made in (one, other))
    for name, parameter in wanted.items():
        assert torch.equal(found[name], parameter), name
        if hasattr(parameter, "quant_state"):
            assert found[name].quant_state.dtype == torch.bfloat16


@pytest.mark.parametrize("compute", ["BFLOAT16", "FLOAT32"])
def test_reading_takes_no_memory_whatever_the_dtype(compute: str, tmp_path: Path) -> None:
    folder = stored_as(tmp_path / "large", torch.float32, **LARGE)
    small = write_tiny_model(tmp_path / "small")
    plan = json.dumps({"execution": {"computeDtype": f"DTYPE_{compute}"}})
    answer = subprocess.run(
        [sys.executable, "-c", GROWTH, str(folder), plan, str(small)],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    growth_bytes, weight_bytes = json.loads(answer.stdout.splitlines()[-1])
    assert weight_bytes > 5 * MOST_GROWTH_BYTES
    assert growth_bytes < MOST_GROWTH_BYTES
