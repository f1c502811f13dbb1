"""The `elite` command: global options, all commands, and how errors end it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from elite_cli.errors import CliError, ExitCode
from elite_cli.options import StateDirectory
from elite_cli.settings import CliSettings

# gRPC's own log lines tell users nothing that our errors do not.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

app = typer.Typer(
    name="elite",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Plans the longest training context that fits a GPU safely, and trains it.",
    epilog="The options above may stand anywhere on the line. Exit codes: 0 done, 1 nothing fits, "
    "the run failed or a service refused, 2 bad input, 3 a service cannot be reached, "
    "130 interrupted.",
)


@app.callback()
def set_up(
    context: typer.Context,
    profiler_address: Annotated[
        str, typer.Option(envvar="ELITE_CLI_PROFILER_ADDRESS", help="host:port or unix:/path.")
    ] = "",
    planner_address: Annotated[
        str, typer.Option(envvar="ELITE_CLI_PLANNER_ADDRESS", help="host:port or unix:/path.")
    ] = "",
    trainer_address: Annotated[
        str, typer.Option(envvar="ELITE_CLI_TRAINER_ADDRESS", help="host:port or unix:/path.")
    ] = "",
    state_directory: StateDirectory = None,
    verbose: Annotated[bool, typer.Option(help="Show the log of in-process services.")] = False,
) -> None:
    """Reads the global options; without addresses, a running `elite up` is used."""
    configure_logging(verbose)
    context.obj = CliSettings(
        profiler_address, planner_address, trainer_address, state_directory, verbose
    )


def configure_logging(verbose: bool) -> None:
    """In-process services log to stderr if asked to, else not at all."""
    import logging

    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    else:
        logging.getLogger().addHandler(logging.NullHandler())


# What may stand anywhere on the line, and whether a value follows.
_GLOBAL_OPTIONS = {
    "--profiler-address": True,
    "--planner-address": True,
    "--trainer-address": True,
    "--state-directory": True,
    "--verbose": False,
}


def global_options_first(arguments: list[str]) -> list[str]:
    """The arguments with the global options moved to the front, where typer looks for them."""
    front: list[str] = []
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        name, has_value_inside, _ = argument.partition("=")
        if argument == "--":
            rest += [argument, *remaining]
        elif name not in _GLOBAL_OPTIONS:
            rest.append(argument)
        else:
            front.append(argument)
            if _GLOBAL_OPTIONS[name] and not has_value_inside:
                front += [value for value in [next(remaining, None)] if value is not None]
    return front + rest


def show_error(error: CliError) -> None:
    """Prints the error to stderr: lines, then hints."""
    from elite_cli.client import CallError
    from elite_cli.options import option_of_field

    for line in error.lines:
        print(f"error: {line}", file=sys.stderr)
    fields = error.fields if isinstance(error, CallError) else ()
    for field in dict.fromkeys(fields):
        if option := option_of_field(field):
            print(f"  {field} is set by {option}", file=sys.stderr)
    for hint in error.hints:
        print(hint, file=sys.stderr)


@contextmanager
def _traced(arguments: list[str]) -> Iterator[None]:
    """The span of one invocation, named by its command, when traces go anywhere."""
    from services.common import tracing

    if not tracing.is_wanted():
        yield
        return
    tracing.configure_tracing("cli")
    words = [word for word in arguments if not word.startswith("-")]
    try:
        with tracing.span(f"elite {' '.join(words[:1])}", kind="CLIENT"):
            yield
    finally:
        tracing.stop_tracing()


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    from elite_cli import commands

    commands.register(app)
    # Ends as Ctrl-C does: streams are cancelled, in-process services stop, sockets go.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    given = global_options_first(sys.argv[1:] if arguments is None else arguments)
    try:
        with _traced(given):
            app(args=given)
    except CliError as error:
        sys.stdout.flush()
        show_error(error)
        return int(error.exit_code)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else ExitCode.FAILURE
    finally:
        signal.signal(signal.SIGTERM, before)
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
