"""Run ids: short, readable, and sorted by time of creation as plain text."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime

# No vowels and no look-alikes: no words, nothing to misread.
_ALPHABET = "23456789bcdfghjkmnpqrstvwxz"
_RANDOM_LENGTH = 4
_PATTERN = re.compile(rf"\d{{8}}-\d{{6}}-\d{{3}}[{_ALPHABET}]{{{_RANDOM_LENGTH}}}")


def new_run_id(now: datetime | None = None) -> str:
    """As in "20260131-154502-042k7qd": UTC date, time, milliseconds and four random letters."""
    moment = now or datetime.now(UTC)
    random = "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_LENGTH))
    return f"{moment:%Y%m%d-%H%M%S}-{moment.microsecond // 1000:03d}{random}"


def first_run_id(moment: datetime) -> str:
    """Sorts before every id made at that time or later, and after all others."""
    return f"{moment:%Y%m%d-%H%M%S}-{moment.microsecond // 1000:03d}"


def is_run_id(text: str) -> bool:
    """Whether `text` has the form of a run id."""
    return _PATTERN.fullmatch(text) is not None


# Of the Hugging Face hub: a name, for old models without an owner. A path has other forms.
HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[\w.-]+)?", re.ASCII)
