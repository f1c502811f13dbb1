"""`elite profile`: what this machine has and was measured to do."""

from __future__ import annotations

from typing import Annotated

import typer

from elite_cli.options import Json
from elite_cli.settings import CliSettings


def profile(
    context: typer.Context,
    stress: Annotated[
        bool, typer.Option("--stress", help="Measure memory and speed; takes two minutes or so.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="With --stress: shorter probes, noisier figures.")
    ] = False,
    json: Json = False,
) -> None:
    """Show this machine: devices, host, software, and measured rates."""
    from elite.profiler.v1 import profiler_pb2
    from elite_cli.connections import Connections
    from elite_cli.errors import bad_option
    from elite_cli.output import output_console, print_json, print_json_line
    from elite_cli.render.profile import render_profile
    from elite_cli.stress import run_stress_test

    if quick and not stress:
        raise bad_option("--quick", "is for the stress test", "add --stress")
    settings: CliSettings = context.obj
    with Connections(settings) as connections:
        if stress and json:
            run_stress_test(connections.profiler, quick=quick, on_message=print_json_line)
            return
        if stress:
            node = run_stress_test(connections.profiler, quick=quick)
        else:
            response = connections.profiler.call("GetProfile", profiler_pb2.GetProfileRequest())
            if json:
                print_json(response)
                return
            node = response.profile
        render_profile(output_console(), node)
