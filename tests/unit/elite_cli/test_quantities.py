"""Sizes and durations: what is accepted, what is refused, what is printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elite_cli.errors import CliError, ExitCode
from elite_cli.quantities import (
    LONGEST_RUN_SECONDS,
    format_bytes,
    format_count,
    format_duration,
    format_energy,
    format_parameters,
    format_rate,
    format_share,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64GiB", 64 * 2**30),
        ("64g", 64 * 2**30),
        ("64GB", 64 * 10**9),
        ("1.5 TiB", 3 * 2**39),
        ("512m", 2**29),
        ("68719476736", 2**36),
        ("68719476736B", 2**36),
        (".5gib", 2**29),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "--host-ram") == size


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("-4GiB", "is negative"),
        ("64", "is only 64 bytes"),
        ("0", "is only 0 bytes"),
        ("9000PiB", "is more than 1 PiB"),
        ("1e400", "is not a size"),
        ("nan", "is not a size"),
        ("64GiBs", "is not a size"),
        ("", "is not a size"),
        ("64 gigs", "is not a size"),
    ],
)
def test_bad_sizes_name_option_and_fix(text: str, problem: str) -> None:
    with pytest.raises(CliError) as raised:
        parse_size(text, "--host-ram")
    assert raised.value.exit_code == ExitCode.BAD_INPUT
    (line,) = raised.value.lines
    assert line.startswith("--host-ram: ")
    assert problem in line
    assert "64GiB" in line


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("90s", 90), ("30m", 1800), ("30min", 1800), ("2h", 7200), ("1h30m", 5400),
        ("1d", 86400), ("250ms", 0.25), ("0.5", 0.5), ("1h 30m".replace(" ", ""), 5400),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, "--max-step-seconds") == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("-5", "is negative"), ("0", "is no time at all"), ("400d", "more than 365 d"),
        ("soon", "is not a duration"), ("5 parsecs", "is not a duration"), ("", "not a duration"),
        ("inf", "is not a duration"), ("1h-5m", "is not a duration"),
    ],
)  # fmt: skip
def test_bad_durations(text: str, problem: str) -> None:
    with pytest.raises(CliError) as raised:
        parse_duration(text, "--max-step-seconds")
    assert problem in raised.value.lines[0]
    assert raised.value.exit_code == ExitCode.BAD_INPUT


def test_a_run_may_be_longer_than_a_step() -> None:
    assert parse_duration("400d", "--max-run-time", LONGEST_RUN_SECONDS) == 400 * 86400
    with pytest.raises(CliError, match="--max-run-time: '40000d' is more than 36500 d"):
        parse_duration("40000d", "--max-run-time", LONGEST_RUN_SECONDS)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (2**20, "1.00 MiB"), (1.25 * 2**30, "1.25 GiB"),
        (999.6 * 2**20, "0.98 GiB"), (64 * 2**30, "64.0 GiB"), (500 * 2**30, "500 GiB"),
        (2**50, "1.00 PiB"),
    ],
)  # fmt: skip
def test_bytes_in_words(size: float, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0451, "45 ms"), (2.314, "2.31 s"), (59.96, "1 min"), (100, "1 min 40 s"),
        (4320, "1 h 12 min"), (3600, "1 h"), (3599.9, "1 h"), (273600, "3 d 4 h"),
    ],
)  # fmt: skip
def test_durations_in_words(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_other_figures_in_words() -> None:
    assert format_rate(152.3e9, "FLOP/s") == "152 GFLOP/s"
    assert format_rate(0, "B/s") == "0 B/s"
    assert format_energy(379_750_000) == "105 kWh"
    assert format_energy(1_512_000) == "420 Wh"
    assert format_rate(999.7, "B/s") == "1.00 kB/s"
    assert format_parameters(134_515_008) == "135 M"
    assert format_parameters(1_543_714_304) == "1.54 B"
    assert format_parameters(999_999_999) == "1.00 B"
    assert format_share(2**30, 2**31) == "1.00 of 2.00 GiB"
    assert format_share(2**29, 2**31) == "512 MiB of 2.00 GiB"
    assert format_duration(0.0001) == "<1 ms"
    assert format_count(4194304) == "4,194,304"


@given(st.integers(min_value=2**20, max_value=2**50))
def test_plain_bytes_are_taken_as_they_are(size: int) -> None:
    assert parse_size(str(size), "--disk") == size


@given(st.floats(min_value=0, max_value=1e18), st.floats(min_value=0, max_value=1e9))
def test_every_figure_can_be_printed(size: float, seconds: float) -> None:
    assert len(format_bytes(size)) <= 10
    assert len(format_duration(seconds)) <= 12
    assert format_rate(size, "B/s")
