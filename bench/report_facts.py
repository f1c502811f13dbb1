"""Any part of a results file as Markdown, by the names of its fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.report_text import NOT_MEASURED, count, seconds, significant, size, table

# How deep headings go; what lies deeper is in one line.
_MOST_LEVELS = 3
_UNITS = {"_bytes": size, "_seconds": seconds, "_tokens": count}


def facts(part: Any, title: str = "", level: int = 0) -> Iterator[str]:
    """Blocks of Markdown for a mapping or a list of mappings: tables, with titles in bold.

    A field's unit is the end of its name, `_bytes` or `_seconds`; null is "not measured".
    """
    if _is_table(part):
        yield from _titled(title, _rows(part))
    elif isinstance(part, Mapping):
        yield from _mapping(part, title, level)
    elif part:
        yield from _titled(title, value(part))


def _mapping(part: Mapping[str, Any], title: str, level: int) -> Iterator[str]:
    nested = {
        name: inner
        for name, inner in part.items()
        if level < _MOST_LEVELS and (isinstance(inner, Mapping) or _is_table(inner))
    }
    if nested and _are_alike(nested) and len(nested) == len(part):
        rows = [{"": words(name), **inner} for name, inner in nested.items()]
        yield from _titled(title, _rows(rows))
        return
    plain = {name: inner for name, inner in part.items() if name not in nested}
    if plain:
        lines = [(words(name), value(inner, name)) for name, inner in plain.items()]
        yield from _titled(title, table(("figure", "value"), lines))
    for name, inner in nested.items():
        yield from facts(inner, ", ".join(filter(None, (title, words(name)))), level + 1)


def _titled(title: str, block: str) -> Iterator[str]:
    if title:
        yield f"**{title}**"
    yield block


def _is_table(part: Any) -> bool:
    return (
        isinstance(part, Sequence)
        and not isinstance(part, str)
        and bool(part)
        and all(isinstance(row, Mapping) for row in part)
    )


def _are_alike(nested: Mapping[str, Any]) -> bool:
    """Whether they can be rows of one table: mappings of plain figures with a field in common."""
    if not all(isinstance(inner, Mapping) for inner in nested.values()):
        return False
    plain = all(
        not isinstance(figure, Mapping) and not _is_table(figure)
        for inner in nested.values()
        for figure in inner.values()
    )
    return plain and bool(set.intersection(*(set(inner) for inner in nested.values())))


def _rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with every field that a row has; a field a row lacks is empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[value(row[name], name) if name in row else "" for name in names] for row in rows]
    return table([words(name) for name in names], lines)


def words(name: str) -> str:
    """A field's name without its unit and underscores."""
    for unit in _UNITS:
        name = name.removesuffix(unit) or name
    return name.replace("_", " ")


def value(figure: Any, name: str = "") -> str:
    """A figure in the unit of its field's name."""
    if figure is None:
        return NOT_MEASURED
    if isinstance(figure, bool):
        return "yes" if figure else "no"
    if isinstance(figure, int | float):
        return _number(figure, name)
    if isinstance(figure, Mapping):
        return ", ".join(f"{words(key)} {value(inner, key)}" for key, inner in figure.items())
    if isinstance(figure, str):
        return figure
    return ", ".join(value(inner, name) for inner in figure) or "none"


def _number(figure: float, name: str) -> str:
    for unit, shown in _UNITS.items():
        if name.endswith(unit):
            return shown(figure)
    if isinstance(figure, int):
        return count(figure)
    return significant(figure)
