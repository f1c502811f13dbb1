"""`elite demo`: the whole way, on this machine, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    context: typer.Context,
    directory: Annotated[
        Path, typer.Option(help="Folder for everything the demo leaves; emptied first.")
    ] = Path(".elite/demo"),
    model: Annotated[str, typer.Option(help="An id from `elite models`.")] = "smollm2-135m",
) -> None:
    """Profile this machine, plan, and train a real model for a few steps.

    Starts all services on free ports, measures this machine, plans SmolLM2-135M, trains it on the
    source code of Python's standard library through broker and worker, shows what the adapter
    gained on files it has not seen, and stops everything.
    """
    from elite_cli.demo import run_demo

    run_demo(context.obj, directory, model)
