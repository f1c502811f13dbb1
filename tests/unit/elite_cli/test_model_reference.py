"""What --model may name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from elite_cli.errors import CliError, ExitCode
from elite_cli.model_reference import LARGEST_CONFIG_BYTES, ModelChoice, read_model

CONFIG = '{"model_type": "llama"}'


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(CONFIG)
    return folder


def test_a_plain_name_is_a_catalogue_id() -> None:
    assert read_model("qwen2.5-1.5b") == ModelChoice(model_id="qwen2.5-1.5b")


def test_a_hub_id_is_left_to_the_planner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("Qwen/Qwen2.5-1.5B", "qwen/qwen2.5-1.5b"):
        assert read_model(name) == ModelChoice(model_id=name)
    (tmp_path / "Qwen" / "Qwen2.5-1.5B").mkdir(parents=True)
    for path in ("Qwen/Qwen2.5-1.5B", "Qwen/none/", "/Qwen", "Qwen/a/b", "Qwen/config.json"):
        with pytest.raises(CliError, match="--model"):
            read_model(path)


def test_folder_and_file_give_the_same(model_folder: Path) -> None:
    expected = ModelChoice(config_json=CONFIG, folder=model_folder)
    assert read_model(str(model_folder)) == expected
    assert read_model(str(model_folder / "config.json")) == expected


def test_a_folder_in_the_current_one(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_folder.parent)
    assert read_model("model").folder == model_folder
    (model_folder / "config.json").unlink()
    assert read_model("model") == ModelChoice(model_id="model")


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"\xff\xfe\x00", "is not text"), (b"  \n", "is empty"), (None, "there is no")],
)
def test_unreadable_configs(model_folder: Path, content: bytes | None, problem: str) -> None:
    config = model_folder / "config.json"
    config.unlink()
    if content is not None:
        config.write_bytes(content)
    with pytest.raises(CliError) as raised:
        read_model(str(model_folder))
    assert raised.value.exit_code == ExitCode.BAD_INPUT
    assert raised.value.lines[0].startswith("--model: ")
    assert problem in raised.value.lines[0]
    assert "elite models" in raised.value.lines[0]


def test_a_missing_path_is_no_catalogue_id() -> None:
    with pytest.raises(CliError, match="is no file"):
        read_model("./nowhere/model")


def test_weights_given_by_mistake_are_not_read(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    with weights.open("wb") as file:
        file.truncate(LARGEST_CONFIG_BYTES + 1)
    with pytest.raises(CliError, match=r"no config\.json"):
        read_model(str(weights))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a hub that cannot be reached. Returns a model's snapshot folder in it."""
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = tmp_path / "hub" / "models--someone--their-model"
    snapshot = model / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0" * 40)
    return snapshot


def test_a_model_of_the_hub_goes_by_its_config(hub_cache: Path) -> None:
    (hub_cache / "config.json").write_text('{"model_type": "llama", "_name_or_path": "/tmp/x"}')
    choice = read_model("someone/their-model")
    assert choice.folder is None
    assert json.loads(choice.config_json) == {
        "model_type": "llama", "_name_or_path": "someone/their-model",
    }  # fmt: skip


def test_an_id_that_the_hub_cannot_have() -> None:
    with pytest.raises(CliError, match="is no id that the hub can have"):
        read_model("some--one/model..")


@pytest.mark.parametrize("content", [None, "not JSON", "[]"])
def test_a_config_that_the_hub_does_not_give(hub_cache: Path, content: str | None) -> None:
    if content is not None:
        (hub_cache / "config.json").write_text(content)
    with pytest.raises(CliError, match="someone/their-model") as raised:
        read_model("someone/their-model")
    assert raised.value.exit_code == ExitCode.BAD_INPUT
    assert "config.json" in raised.value.lines[0]
