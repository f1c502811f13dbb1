"""Sizes and durations as people write and read them."""

from __future__ import annotations

import math
import re

from elite_cli.errors import bad_option

# A letter alone, or with "iB", counts in 1024s, as in `docker run --memory 64g`; with "B" in 1000s.
_PREFIXES = "kmgtp"
_SIZE = re.compile(r"(?P<number>[0-9]*\.?[0-9]+)\s*(?P<unit>(?:[kmgtp](?:i?b)?|b)?)", re.IGNORECASE)
_SIZE_FIX = "a size such as 64GiB, 64GB, 64g or plain bytes"
LARGEST_SIZE_BYTES = 2**50
# Below this a number was surely meant with a unit.
SMALLEST_SIZE_BYTES = 2**20

_DURATION_PART = re.compile(r"(?P<number>[0-9]*\.?[0-9]+)\s*(?P<unit>ms|s|min|m|h|d)")
_PLAIN_SECONDS = re.compile(r"[0-9]*\.?[0-9]+(?:e[0-9]+)?")
_DURATION_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_FIX = "a duration such as 90, 90s, 30m, 2h or 1h30m"
LONGEST_STEP_SECONDS = 365 * 86400.0
LONGEST_RUN_SECONDS = 100 * LONGEST_STEP_SECONDS


def parse_size(text: str, option: str) -> int:
    """Bytes of "64GiB", "64GB", "64g" or "68719476736".

    Raises `CliError` naming `option` for anything else, and outside 1 MiB to 1 PiB.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        problem = "is negative" if text.strip().startswith("-") else "is not a size"
        raise bad_option(option, f"{text!r} {problem}", _SIZE_FIX)
    size = float(match["number"]) * _unit_bytes(match["unit"].lower())
    if size < SMALLEST_SIZE_BYTES:
        raise bad_option(option, f"{text!r} is only {size:.0f} bytes", f"give {_SIZE_FIX}")
    if size > LARGEST_SIZE_BYTES:
        raise bad_option(option, f"{text!r} is more than 1 PiB", f"give {_SIZE_FIX}")
    return int(size)


def _unit_bytes(unit: str) -> int:
    if unit in ("", "b"):
        return 1
    base = 1000 if unit[1:] == "b" else 1024
    return int(base ** (_PREFIXES.index(unit[0]) + 1))


def parse_duration(text: str, option: str, longest: float = LONGEST_STEP_SECONDS) -> float:
    """Seconds of "90", "90s", "30m", "2h" or "1h30m".

    Raises `CliError` naming `option` for anything else, for zero, and above `longest` seconds.
    """
    seconds = _seconds_of(text.strip().lower())
    if seconds is None:
        problem = "is negative" if text.strip().startswith("-") else "is not a duration"
        raise bad_option(option, f"{text!r} {problem}", _DURATION_FIX)
    if not 0 < seconds <= longest:
        problem = f"is more than {format_duration(longest)}" if seconds else "is no time at all"
        raise bad_option(option, f"{text!r} {problem}", f"give {_DURATION_FIX}")
    return seconds


def _seconds_of(text: str) -> float | None:
    if _PLAIN_SECONDS.fullmatch(text):
        return float(text)
    position, seconds = 0, 0.0
    while position < len(text):
        part = _DURATION_PART.match(text, position)
        if part is None:
            return None
        seconds += float(part["number"]) * _DURATION_SECONDS[part["unit"]]
        position = part.end()
    return seconds if position else None


def format_bytes(size: float) -> str:
    """ "1.25 GiB", "310 MiB", "512 B": three significant digits, binary units."""
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 999.5:
            return f"{_three_digits(size)} {unit}"
    return f"{_three_digits(size / 1024)} PiB"


def format_share(part: float, whole: float) -> str:
    """ "20.1 of 22.8 GiB", "310 MiB of 1.25 GiB"."""
    shown, unit = format_bytes(part).split()
    total = format_bytes(whole)
    return f"{shown} of {total}" if total.endswith(f" {unit}") else f"{shown} {unit} of {total}"


def format_rate(per_second: float, unit: str) -> str:
    """ "152 GFLOP/s", "12.1 GB/s": three significant digits, decimal prefixes."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if per_second < 999.5 or prefix == "P":
            return f"{_three_digits(per_second)} {prefix}{unit}"
        per_second /= 1000
    raise AssertionError("the loop ends at P")


def format_energy(joules: float) -> str:
    """ "105 kWh", "1.05 MWh", "420 Wh"."""
    return format_rate(joules / 3600, "Wh")


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    decimals = min(2, max(0, 2 - math.floor(math.log10(value))))
    return f"{value:.{decimals}f}"


def format_duration(seconds: float) -> str:
    """ "45 ms", "2.31 s", "1 min 40 s", "1 h 12 min", "3 d 4 h": the two largest units."""
    if 0 < seconds < 0.0005:
        return "<1 ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{_three_digits(seconds)} s"
    whole = round(seconds)
    for unit, size, smaller, smaller_size in (
        ("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1),
    ):  # fmt: skip
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    raise AssertionError("a minute is the smallest unit here")


def format_count(count: int) -> str:
    """ "4,194,304"."""
    return f"{count:,}"


def format_parameters(count: int) -> str:
    """ "135 M", "1.54 B": parameters of a model, three significant digits."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size * 0.9995:
            return f"{_three_digits(count / size)} {unit}"
    return str(count)
