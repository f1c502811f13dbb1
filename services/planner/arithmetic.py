"""Arithmetic that a formula can do on plain numbers, on whole grids, and on numbers that remember.

The formulas of memory and time are written once. They run on plain numbers for one set, on numpy
arrays for all tiers (down) and sets (across) at once, and on `Traced` numbers to explain
themselves. Arrays are float64, which has every whole number below 2^53: a division of whole numbers
takes a third of the time integers take, and nothing is converted on the way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from services.planner.tracing import Traced

# int, float, a numpy array of float64, or Traced.
Number = Any

# The bits of a float64 below its exponent.
_FRACTION = (1 << 52) - 1


def maximum(*values: Number) -> Number:
    """The largest, element by element."""
    kinds = set(map(type, values))
    if Traced in kinds:
        return Traced.call("max", max(value_of(value) for value in values), values)
    if np.ndarray not in kinds:
        return max(values)
    result = values[0]
    for value in values[1:]:
        result = np.maximum(result, value)
    return result


def minimum(*values: Number) -> Number:
    """The smallest, element by element."""
    kinds = set(map(type, values))
    if Traced in kinds:
        return Traced.call("min", min(value_of(value) for value in values), values)
    if np.ndarray not in kinds:
        return min(values)
    result = values[0]
    for value in values[1:]:
        result = np.minimum(result, value)
    return result


def where(condition: Number, then: Number, otherwise: Number) -> Number:
    """`then` where the condition holds, else `otherwise`; conditions are never traced.

    Conditions in columns are 0 or 1, as numbers: a product is three times as fast as a choice.
    """
    if isinstance(condition, np.ndarray):
        if type(otherwise) is int and otherwise == 0:
            return condition * then
        if type(then) is int and then == 0:
            return (1 - condition) * otherwise
        return np.where(condition, then, otherwise)
    return then if value_of(condition) else otherwise


def total(values: Iterable[Number]) -> Number:
    """The sum; `sum` would add the first to 0, which for a grid is one more pass."""
    first, *others = values
    return sum(others, start=first)


def whole(value: Number) -> Number:
    """Rounded to the nearest integer."""
    if isinstance(value, np.ndarray):
        return np.rint(value)
    if type(value) is Traced:
        return Traced.call("round", round(value.value), (value,))
    return round(value)


def power_of_two_from(value: Number) -> Number:
    """The smallest power of two that is not below `value`; 0 stays 0."""
    if isinstance(value, np.ndarray):
        return _without_fraction(value, _FRACTION)
    if type(value) is Traced:
        return Traced.call("power_of_two", power_of_two_from(value.value), (value,))
    return 1 << (int(value) - 1).bit_length() if value > 0 else 0


def power_of_two_to(value: Number) -> Number:
    """The largest power of two that is not above `value`, at least 1."""
    if isinstance(value, np.ndarray):
        return _without_fraction(np.maximum(value, 1), 0)
    return 1 << (max(1, int(value_of(value))).bit_length() - 1)


def _without_fraction(value: Any, carry: int) -> Any:
    """The power of two in a float's exponent, of whole numbers; `carry` is added before."""
    bits = value.view(np.int64) + carry
    bits &= ~_FRACTION
    return bits.view(np.float64)


def ceiling_divide(value: Number, by: Number) -> Number:
    """Quotient rounded up."""
    if type(value) is Traced or type(by) is Traced:
        return Traced.call("ceil", -(-value_of(value) // value_of(by)), (value / by,))
    if np.ndarray in (type(value), type(by)):
        return np.ceil(value / by)
    return -(-value // by)


def floor_divide(value: Number, by: Number) -> Number:
    """Quotient rounded down."""
    if np.ndarray in (type(value), type(by)):
        return np.floor(value / by)
    return value // by


def value_of(number: Number) -> Number:
    """The plain number."""
    return number.value if type(number) is Traced else number
