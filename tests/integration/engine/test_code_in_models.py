"""A model's files may hold code: in Python beside the weights, or in pickled weights."""

from __future__ import annotations

import ast
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.trainer.engine.failures import EngineError
from services.trainer.engine.key_value_heads import write_converted
from services.trainer.engine.models import load_model, load_tokenizer
from tests.fixtures.engine import LLAMA_LINEARS, a_plan, tiny_config, write_tiny_model

REPOSITORY = Path(__file__).resolve().parents[3]
# Those of transformers and PEFT that take `trust_remote_code`.
LOADS = {"from_pretrained", "from_config"}


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


def test_a_model_is_converted_without_its_code(model: Path, ran: Path, tmp_path: Path) -> None:
    write_converted(str(model), 1, tmp_path / "converted")
    assert (tmp_path / "converted" / "model.safetensors").exists()
    assert not ran.exists()


def loads(source: str) -> Iterator[ast.Call]:
    """Calls in a module that read a model, or a part of one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in LOADS:
            yield node


def is_without_code(call: ast.Call) -> bool:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    value = given.get("trust_remote_code")
    return isinstance(value, ast.Constant) and value.value is False


def test_every_load_says_that_no_code_of_the_model_runs() -> None:
    """Not by transformers' default: that may change, and one that is left out is not seen."""
    found, silent = 0, []
    for path in [*REPOSITORY.glob("services/**/*.py"), *REPOSITORY.glob("elite_cli/**/*.py")]:
        for call in loads(path.read_text()):
            found += 1
            if not is_without_code(call):
                silent.append(f"{path.relative_to(REPOSITORY)}:{call.lineno}")
    assert silent == []
    assert found >= 6
    (wrong,) = loads("AutoModel.from_pretrained(path, trust_remote_code=True)")
    assert not is_without_code(wrong)


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
