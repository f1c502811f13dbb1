"""`elite tokens`: tokens for those who may call the services."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Tokens for those who may call the services.")


class RoleName(StrEnum):
    """Each may do what those before it may."""

    VIEWER = "viewer"
    SUBMITTER = "submitter"
    ADMIN = "admin"


@app.callback()
def _group() -> None:
    """A group, though it has one command."""


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Of the client, as in logs and in run records.")],
    role: Annotated[
        RoleName, typer.Option(help="viewer reads; submitter runs; admin ends anybody's runs.")
    ] = RoleName.SUBMITTER,
) -> None:
    """Make a token: it goes to stdout, the entry for the services' tokens file to stderr."""
    from elite_cli.errors import CliError, ExitCode
    from services.common.access import is_client_name, new_token

    if not is_client_name(name):
        problem = "NAME: give up to 63 of a-z, 0-9, '.', '_', '@' and '-'"
        raise CliError(problem, exit_code=ExitCode.BAD_INPUT)
    token, sha256 = new_token()
    typer.echo(token)
    entry = f"  - {{name: {name}, role: {role.value}, sha256: {sha256}}}"
    typer.echo(
        "Shown once; nothing keeps it. The client gives it as ELITE_CLIENT_TOKEN_FILE.\n"
        f"Add this below `tokens:` in the services' tokens file (ELITE_*_TOKENS_FILE):\n{entry}",
        err=True,
    )
