"""The config.json of a model on the Hugging Face hub, kept in the hub library's own cache."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

from elite_cli.errors import CliError, bad_option

_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FIX = "download its config.json and give that file; or see `elite models`"


def is_hub_id(text: str) -> bool:
    """Whether a name has the shape OWNER/NAME, and is no path on this machine."""
    return bool(_ID.fullmatch(text)) and not text.startswith(".") and not Path(text).exists()


def hub_config(hub_id: str) -> str:
    """The text of a hub model's config.json, which names where its weights are.

    Settings are the hub library's own: HF_HOME, HF_TOKEN, HF_HUB_OFFLINE. Raises `CliError` when it
    cannot be had.
    """
    try:
        config = json.loads(_download(hub_id).read_text(encoding="utf-8"))
    except ValueError as error:
        raise _unread(hub_id, "it is not JSON") from error
    if not isinstance(config, dict):
        raise _unread(hub_id, "it is not a JSON object")
    # Whatever the file says: weights come from where the configuration came from.
    return json.dumps(config | {"_name_or_path": hub_id})


def _download(hub_id: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    print(f"looking for {hub_id} on the hub", file=sys.stderr)
    # It tells of every one of its retries.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return Path(hf_hub_download(hub_id, "config.json"))
    except HFValidationError as error:
        raise bad_option("--model", f"{hub_id} is no id that the hub can have", _FIX) from error
    except GatedRepoError as error:
        problem = f"{hub_id} is behind a licence on the hub"
        raise bad_option("--model", problem, "accept it there and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        problem = f"{hub_id} is not in the catalogue, and there is none on the hub"
        raise bad_option("--model", problem, _FIX) from error
    except EntryNotFoundError as error:
        raise _unread(hub_id, "it has none, or none in the cache of an unreachable hub") from error
    except OSError as error:  # the hub's errors of connection are among them
        raise _unread(hub_id, "the hub cannot be reached") from error


def _unread(hub_id: str, why: str) -> CliError:
    return bad_option("--model", f"{hub_id} has no config.json that can be read: {why}", _FIX)
