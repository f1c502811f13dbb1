"""A running stack for people."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from elite_cli.endpoints import Endpoints
from elite_cli.render.tables import new_table
from elite_cli.stack.definition import StackOptions


def render_stack(
    console: Console, endpoints: Endpoints, options: StackOptions, logs_directory: Path
) -> None:
    """Prints where everything listens and what it may read."""
    table = new_table()
    table.add_column("service", no_wrap=True)
    table.add_column("gRPC", no_wrap=True)
    table.add_column("metrics", no_wrap=True)
    for name, metrics in endpoints.metrics_addresses.items():
        table.add_row(name, endpoints.addresses.get(name, "-"), f"http://{metrics}/metrics")
    console.print(table)
    console.print()
    lines = (
        f"state: {options.state_directory}",
        f"logs: {logs_directory}",
        "runs may read data from: " + ", ".join(map(str, options.data_roots)),
        "Up. Ctrl-C stops everything.",
    )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
