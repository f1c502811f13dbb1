"""What --model may name."""

from __future__ import annotations

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
    assert read_model("Qwen/Qwen2.5-1.5B") == ModelChoice(model_id="Qwen/Qwen2.5-1.5B")
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
