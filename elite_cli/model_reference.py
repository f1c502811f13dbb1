"""What --model names: a catalogue or hub id, a folder with a config.json, or a config.json file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from elite_cli.errors import bad_option
from elite_cli.hub import hub_config, is_hub_id

CONFIG_FILE = "config.json"
# A config.json is a few kilobytes. The planner has the exact limit; this only keeps a folder of
# weights given by mistake from being read into memory.
LARGEST_CONFIG_BYTES = 8 * 1024 * 1024
_FIX = f"an id from `elite models`, a folder with a {CONFIG_FILE}, or a {CONFIG_FILE} file"


@dataclass(frozen=True)
class ModelChoice:
    """Either a catalogue id, or a config.json's text and the folder it came from."""

    model_id: str = ""
    config_json: str = ""
    folder: Path | None = None


def read_model(text: str) -> ModelChoice:
    """What `--model text` means. Raises `CliError` when a path cannot be read.

    A name that is no local folder with a config.json is a catalogue id, or a hub id, as in
    Qwen/Qwen2.5-1.5B; of models that are not in the catalogue the hub has the config.json.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        if (path / CONFIG_FILE).is_file() or _is_path(text):
            return _read_config(path / CONFIG_FILE, text)
    elif path.is_file() or _is_path(text):
        return _read_config(path, text)
    if is_hub_id(text) and not _is_in_catalogue(text):
        return ModelChoice(config_json=hub_config(text))
    return ModelChoice(model_id=text)


def _is_in_catalogue(text: str) -> bool:
    from services.planner.models import catalogue_id  # loads tables

    return catalogue_id(text) is not None


def _is_path(text: str) -> bool:
    looks_like_one = os.sep in text and not is_hub_id(text)
    return looks_like_one or text.startswith((".", "~")) or text.endswith((".json", "/"))


def _read_config(path: Path, text: str) -> ModelChoice:
    try:
        size = path.stat().st_size
        if size > LARGEST_CONFIG_BYTES:
            raise bad_option("--model", f"{path} is {size} bytes, no {CONFIG_FILE}", f"give {_FIX}")
        config_json = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        problem = f"there is no {path}" if path.name == CONFIG_FILE else f"{text!r} is no file"
        raise bad_option("--model", problem, f"give {_FIX}") from error
    except UnicodeDecodeError as error:
        raise bad_option("--model", f"{path} is not text", f"give {_FIX}") from error
    except OSError as error:
        raise bad_option("--model", f"cannot read {path}: {error.strerror}", _FIX) from error
    if not config_json.strip():
        raise bad_option("--model", f"{path} is empty", f"give {_FIX}")
    return ModelChoice(config_json=config_json, folder=path.absolute().parent)
