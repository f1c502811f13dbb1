"""`elite up`: all services on this machine, until Ctrl-C."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elite_cli.errors import bad_option
from elite_cli.options import Json
from elite_cli.settings import CliSettings

if TYPE_CHECKING:
    from elite_cli.stack.definition import StackOptions
    from elite_cli.stack.local_stack import LocalStack


def up(
    context: typer.Context,
    port_base: Annotated[
        int, typer.Option(min=0, help="First port of all that listen; 0: any free ports.")
    ] = 50051,
    data_root: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder runs may read data from; repeat it. Without: the current and the home "
            "folder, Python's standard library, the folder for temporary files.",
            show_default=False,
        ),
    ] = None,
    model_root: Annotated[
        list[Path] | None,
        typer.Option(help="Folder models may lie in; repeat it. Without: as --data-root."),
    ] = None,
    json: Json = False,
) -> None:
    """Start all services on this machine: broker, profiler, planner, trainer, one worker.

    Ctrl-C or SIGTERM stops them, the worker first, which saves a checkpoint; a second Ctrl-C does
    not wait for it. With --json the addresses are printed as one JSON object once all is up.
    """
    from elite_cli.output import note
    from elite_cli.stack.local_stack import LocalStack
    from elite_cli.stack.process_group import termination_as_interrupt

    settings: CliSettings = context.obj
    options = stack_options(
        settings.state_directory, port_base, tuple(data_root or ()), tuple(model_root or ())
    )
    with termination_as_interrupt():
        try:
            with LocalStack(options, note) as stack:
                _print_addresses(stack, json)
                stack.wait()
        except KeyboardInterrupt:
            note("Stopped.")


def stack_options(
    state_directory: Path,
    port_base: int,
    data_roots: tuple[Path, ...] = (),
    model_roots: tuple[Path, ...] = (),
) -> StackOptions:
    """Checks the options of a stack and fills in its defaults. Raises `CliError`."""
    from elite_cli.stack.definition import StackOptions
    from elite_cli.stack.ports import HIGHEST_PORT_BASE

    if not (port_base == 0 or 1024 <= port_base <= HIGHEST_PORT_BASE):
        fix = f"0, or from 1024 to {HIGHEST_PORT_BASE}"
        raise bad_option("--port-base", f"is {port_base}", fix)
    return StackOptions(
        state_directory,
        port_base,
        _roots(data_roots, "--data-root"),
        _roots(model_roots, "--model-root"),
    )


def _roots(given: tuple[Path, ...], option: str) -> tuple[Path, ...]:
    roots = tuple(root.expanduser().absolute() for root in given)
    for root in roots:
        if not root.is_dir():
            raise bad_option(option, f"{root} is no folder", "give an existing folder")
        if os.pathsep in str(root):
            raise bad_option(option, f"{root} has a {os.pathsep!r} in it", "rename the folder")
    return roots or default_roots()


def default_roots() -> tuple[Path, ...]:
    """The current and the home folder, the standard library's, the one for temporary files."""
    import sysconfig
    import tempfile

    folders = (Path.cwd(), Path.home(), sysconfig.get_path("stdlib"), tempfile.gettempdir())
    found = dict.fromkeys(Path(folder).absolute() for folder in folders)
    return tuple(folder for folder in found if folder.is_dir() and os.pathsep not in str(folder))


def _print_addresses(stack: LocalStack, json: bool) -> None:
    import json as json_module
    from dataclasses import asdict

    from elite_cli.output import output_console
    from elite_cli.render.stack import render_stack

    if json:
        print(json_module.dumps(asdict(stack.endpoints)), flush=True)
    else:
        render_stack(output_console(), stack.endpoints, stack.options, stack.logs_directory)
