"""`elite tiers`, `models`, `gpus`, `optimizations`: what the planner knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from elite_cli.options import Json

if TYPE_CHECKING:
    from google.protobuf.message import Message


def tiers(context: typer.Context, json: Json = False) -> None:
    """List the tiers of the ladder, custom ones included."""
    from elite.planner.v1 import planner_pb2

    _list(context, "ListTiers", planner_pb2.ListTiersRequest(), json)


def models(context: typer.Context, json: Json = False) -> None:
    """List the models the planner knows by name."""
    from elite.planner.v1 import planner_pb2

    _list(context, "ListModels", planner_pb2.ListModelsRequest(), json)


def gpus(context: typer.Context, json: Json = False) -> None:
    """List the cards `elite plan --gpu` takes."""
    from elite.planner.v1 import planner_pb2

    _list(context, "ListGpus", planner_pb2.ListGpusRequest(), json)


def optimizations(context: typer.Context, json: Json = False) -> None:
    """List the optimisations: what each does, and whether it is applied."""
    from elite.planner.v1 import planner_pb2

    _list(context, "ListOptimizations", planner_pb2.ListOptimizationsRequest(), json)


def _list(context: typer.Context, method: str, request: Message, json: bool) -> None:
    from elite_cli.connections import Connections
    from elite_cli.output import output_console, print_json

    with Connections(context.obj) as connections:
        response: Any = connections.planner.call(method, request)
    if json:
        print_json(response)
        return
    from elite_cli.render.catalogues import RENDERERS

    RENDERERS[method](output_console(), response)
