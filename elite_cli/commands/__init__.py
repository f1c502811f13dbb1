"""The commands, one module each. What a command alone needs is imported inside it."""

from __future__ import annotations

import typer

from elite_cli.commands import catalogues, runs, tokens
from elite_cli.commands.demo import demo
from elite_cli.commands.plan import estimate, plan
from elite_cli.commands.profile import profile
from elite_cli.commands.train import train
from elite_cli.commands.up import up


def register(app: typer.Typer) -> None:
    """Adds every command, in the order the help shows them."""
    app.command("up")(up)
    app.command("demo")(demo)
    app.command("profile")(profile)
    app.command("plan")(plan)
    app.command("estimate")(estimate)
    app.command("train")(train)
    app.add_typer(runs.app, name="runs")
    app.add_typer(tokens.app, name="tokens")
    app.command("tiers")(catalogues.tiers)
    app.command("models")(catalogues.models)
    app.command("gpus")(catalogues.gpus)
    app.command("optimizations")(catalogues.optimizations)
