"""A model's files may hold code: in Python beside the weights, or in pickled weights."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from services.trainer.engine.failures import EngineError
from services.trainer.engine.models import load_model, load_tokenizer
from tests.fixtures.engine import LLAMA_LINEARS, a_plan, tiny_config, write_tiny_model


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, ran: Path) -> None:
        self._ran = ran

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _mark, (str(self._ran),)


def _mark(path: str) -> None:
    Path(path).touch()


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """Exists once code of the model has run."""
    return tmp_path / "ran"


@pytest.fixture
def model(tmp_path: Path, ran: Path) -> Path:
    """A good model with code of its own beside its weights."""
    folder = write_tiny_model(tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(ran)))
    for name, kinds in (
        ("config.json", {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}),
    ):
        changed = json.loads((folder / name).read_text()) | {"auto_map": kinds}
        (folder / name).write_text(json.dumps(changed))
    return folder


def test_a_payload_runs_when_it_is_unpickled(ran: Path) -> None:
    pickle.loads(pickle.dumps(Payload(ran)))
    assert ran.exists()


def test_a_known_kind_of_model_is_loaded_without_its_code(model: Path, ran: Path) -> None:
    load_model(str(model), a_plan(tiny_config(), LLAMA_LINEARS))
    load_tokenizer(str(model))
    assert not ran.exists()


def test_pickled_weights_are_refused(model: Path, ran: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(EngineError, match="cannot be loaded"):
        load_model(str(model), a_plan(tiny_config(), LLAMA_LINEARS))
    assert not ran.exists()


def test_a_model_that_is_nothing_but_its_code_is_refused(model: Path, ran: Path) -> None:
    config = json.loads((model / "config.json").read_text()) | {"model_type": "evil"}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match="cannot be loaded"):
        load_model(str(model), a_plan(tiny_config(), LLAMA_LINEARS))
    assert not ran.exists()
