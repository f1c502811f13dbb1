"""Numbers that remember how they came about: `elite plan --explain` runs the formulas on them."""

from __future__ import annotations

from typing import Any

# A quotient that was rounded down keeps its parentheses in a product: elsewhere it means another.
_ADDITION, _ROUNDED, _PRODUCT, _ATOM = 1, 2, 3, 4


class Traced:
    """A number with the expression that made it: by names, and with the numbers in their place.

    Terms that are zero and factors that are one leave no trace. `named` cuts an expression short:
    later formulas show the name, as people do.
    """

    __slots__ = ("expression", "numbers", "strength", "value")

    def __init__(
        self, value: float, expression: str, numbers: str | None = None, strength: int = _ATOM
    ) -> None:
        self.value = value
        self.expression = expression
        self.numbers = plain(value) if numbers is None else numbers
        self.strength = strength

    @classmethod
    def call(cls, function: str, value: float, arguments: tuple[Any, ...]) -> Traced:
        """The result of a function of numbers."""
        traced = [_lift(argument) for argument in arguments]
        expression = ", ".join(argument.expression for argument in traced)
        numbers = ", ".join(argument.numbers for argument in traced)
        return cls(value, f"{function}({expression})", f"{function}({numbers})")

    def __add__(self, other: Any) -> Traced:
        return _join(self, "+", _lift(other), self.value + _value(other))

    def __radd__(self, other: Any) -> Traced:
        return _lift(other) + self

    def __sub__(self, other: Any) -> Traced:
        return _join(self, "-", _lift(other), self.value - _value(other))

    def __rsub__(self, other: Any) -> Traced:
        return _lift(other) - self

    def __mul__(self, other: Any) -> Traced:
        return _join(self, "*", _lift(other), self.value * _value(other))

    def __rmul__(self, other: Any) -> Traced:
        return _lift(other) * self

    def __truediv__(self, other: Any) -> Traced:
        return _join(self, "/", _lift(other), self.value / _value(other))

    def __rtruediv__(self, other: Any) -> Traced:
        return _lift(other) / self

    def __floordiv__(self, other: Any) -> Traced:
        return _join(self, "//", _lift(other), self.value // _value(other))

    def __rfloordiv__(self, other: Any) -> Traced:
        return _lift(other) // self

    def __pow__(self, exponent: int) -> Traced:
        expression, numbers = _inside(self, _ATOM)
        return Traced(
            self.value**exponent, f"{expression}^{exponent}", f"{numbers}^{exponent}", _PRODUCT
        )

    def __gt__(self, other: Any) -> bool:
        return bool(self.value > _value(other))

    def __lt__(self, other: Any) -> bool:
        return bool(self.value < _value(other))

    def __ge__(self, other: Any) -> bool:
        return bool(self.value >= _value(other))

    def __le__(self, other: Any) -> bool:
        return bool(self.value <= _value(other))

    def __float__(self) -> float:
        return float(self.value)

    def __int__(self) -> int:
        return int(self.value)


def plain(value: float) -> str:
    """A number as people write it."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _value(other: Any) -> Any:
    return other.value if isinstance(other, Traced) else other


def _lift(other: Any) -> Traced:
    return other if isinstance(other, Traced) else Traced(other, plain(other))


def _join(left: Traced, operator: str, right: Traced, value: float) -> Traced:
    unit = 0 if operator in "+-" else 1
    if right.value == unit:
        return left
    if (operator == "+" and left.value == 0) or (operator == "*" and left.value == 1):
        return right
    if operator == "*" and value == 0:
        return Traced(value, "0")
    strength = _ADDITION if operator in "+-" else _PRODUCT
    left_expression, left_numbers = _inside(left, strength)
    # What is subtracted or divided by keeps its own parentheses.
    right_expression, right_numbers = _inside(right, strength + (operator in ("-", "/", "//")))
    return Traced(
        value,
        f"{left_expression} {operator} {right_expression}",
        f"{left_numbers} {operator} {right_numbers}",
        _ROUNDED if operator == "//" else strength,
    )


def _inside(number: Traced, strength: int) -> tuple[str, str]:
    if number.strength >= strength:
        return number.expression, number.numbers
    return f"({number.expression})", f"({number.numbers})"
