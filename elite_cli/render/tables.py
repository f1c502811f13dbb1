"""Tables of one look."""

from __future__ import annotations

from rich import box
from rich.table import Table

# Below this width tables leave out what matters least.
NARROW_COLUMNS = 100


def new_table(*, title: str = "") -> Table:
    """A table with a rule under its head and no other lines."""
    return Table(
        title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
        pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="bold",
    )  # fmt: skip


def facts_table() -> Table:
    """Two columns: what it is, and its value."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    return table
