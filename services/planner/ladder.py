"""The ladder of tiers: eleven of the house, and those a user adds by configuration.

A tier is a context the model reads and a target it predicts, with the LoRA rank that goes with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from services.planner.tables import parse_yaml, table

TOKENS_PER_LINE_OF_CODE = 4
SMALLEST_CONTEXT = 256
_GIGABYTE = 10**9

_LIMITS: Mapping[str, tuple[int, int]] = {
    "tier": (1, 10_000),
    "context_tokens": (SMALLEST_CONTEXT, 2**30),
    "target_tokens": (1, 2**30),
    "lora_rank": (1, 4096),
}


class LadderFileError(ValueError):
    """A ladder file that cannot be used; the message names file, entry and field."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One row of the ladder. A training window is `context_tokens + target_tokens` long."""

    tier: int
    context_tokens: int
    target_tokens: int
    lora_rank: int
    reference_vram_bytes: int = 0
    custom: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of one window."""
        return self.context_tokens + self.target_tokens

    @property
    def context_multiple(self) -> int:
        """Context over 256, to the nearest power of two."""
        return 1 << max(0, round(math.log2(self.context_tokens / SMALLEST_CONTEXT)))

    @property
    def lines_of_code(self) -> int:
        """Lines of source code in the context, at four tokens a line."""
        return self.context_tokens // TOKENS_PER_LINE_OF_CODE


def load_ladder(overlay: Path | None = None) -> tuple[Tier, ...]:
    """All tiers in ascending order; `overlay` is a YAML file with tiers to add.

    Raises `LadderFileError` when the overlay cannot be read or an entry is wrong.
    """
    tiers = [_built_in(row) for row in table("ladder")["tiers"]]
    if overlay is not None:
        tiers += _read_overlay(overlay, {tier.tier for tier in tiers})
    return tuple(sorted(tiers, key=lambda tier: tier.tier))


def _built_in(row: Mapping[str, int]) -> Tier:
    return _tier(row, reference_vram_bytes=row["reference_vram_gigabytes"] * _GIGABYTE)


def _tier(row: Mapping[str, int], reference_vram_bytes: int = 0, custom: bool = False) -> Tier:
    return Tier(
        tier=row["tier"],
        context_tokens=row["context_tokens"],
        target_tokens=row["target_tokens"],
        lora_rank=row["lora_rank"],
        reference_vram_bytes=reference_vram_bytes,
        custom=custom,
    )


def _read_overlay(path: Path, taken: set[int]) -> list[Tier]:
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LadderFileError(f"{path}: cannot be read as YAML: {error}") from error
    rows = document.get("tiers") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not rows:
        raise LadderFileError(f"{path}: tiers: is missing: give a list of tiers")
    return _check_rows(path, rows, set(taken))


def _check_rows(path: Path, rows: Sequence[Any], taken: set[int]) -> list[Tier]:
    tiers = []
    for index, row in enumerate(rows):
        tier = _custom(f"{path}: tiers[{index}]", row)
        if tier.tier in taken:
            raise LadderFileError(
                f"{path}: tiers[{index}].tier: is {tier.tier}, which the ladder has already: "
                f"give another number"
            )
        taken.add(tier.tier)
        tiers.append(tier)
    return tiers


def _custom(where: str, row: Any) -> Tier:
    if not isinstance(row, dict):
        raise LadderFileError(f"{where}: is not a mapping: give {', '.join(_LIMITS)}")
    unknown = sorted(str(name) for name in set(row) - set(_LIMITS))
    if unknown:
        raise LadderFileError(f"{where}.{unknown[0]}: is unknown: give {', '.join(_LIMITS)}")
    return _tier({name: _whole_number(where, name, row) for name in _LIMITS}, custom=True)


def _whole_number(where: str, name: str, row: Mapping[str, Any]) -> int:
    lowest, highest = _LIMITS[name]
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        problem = "is missing" if value is None else f"is {value!r}"
        raise LadderFileError(
            f"{where}.{name}: {problem}: give a whole number from {lowest} to {highest}"
        )
    return value
