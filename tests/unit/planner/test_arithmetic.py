"""Columns say what plain numbers say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.planner.arithmetic import (
    ceiling_divide,
    floor_divide,
    power_of_two_from,
    power_of_two_to,
)

# What a float64 has every whole number of.
SIZES = st.integers(min_value=0, max_value=2**53 - 1)
DIVISORS = st.integers(min_value=1, max_value=2**53 - 1)


def column(value: int) -> Any:
    return np.array([[value]], dtype=np.float64)


@pytest.mark.parametrize("divide", [ceiling_divide, floor_divide])
@given(value=SIZES, by=DIVISORS, times=SIZES)
def test_whole_numbers_are_divided_exactly(
    divide: Callable[..., Any], value: int, by: int, times: int
) -> None:
    """At multiples and beside them above all: there a rounded quotient would be another one."""
    multiple = by * max(1, times // by)
    for number in (value, multiple - 1, multiple, min(multiple + 1, 2**53 - 1)):
        exact = divide(number, by)
        assert divide(column(number), by) == exact
        assert divide(column(number), column(by)) == exact


@given(value=st.integers(min_value=1, max_value=2**52))
def test_powers_of_two_are_those_of_plain_numbers(value: int) -> None:
    for number in (value, 1 << value.bit_length() - 1):
        assert power_of_two_from(column(number)) == power_of_two_from(number)
        assert power_of_two_to(column(number)) == power_of_two_to(number)


def test_nothing_stays_nothing() -> None:
    assert power_of_two_from(column(0)) == power_of_two_from(0) == 0
    assert power_of_two_to(column(0)) == power_of_two_to(0) == 1
