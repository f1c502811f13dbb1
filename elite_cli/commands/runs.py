"""`elite runs ...`: list, show, watch, pause, cancel and resume runs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from elite_cli.options import Json

app = typer.Typer(no_args_is_help=True, help="List, show, watch, pause, cancel and resume runs.")

RunId = Annotated[str, typer.Argument(help="A run id from `elite runs list`.", show_default=False)]


class StateName(StrEnum):
    """Values of --state."""

    PENDING = "pending"
    PLANNED = "planned"
    RUNNING = "running"
    RESUMING = "resuming"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PAUSED = "paused"


@app.command("list")
def list_runs(
    context: typer.Context,
    state: Annotated[
        list[StateName] | None, typer.Option(help="Only runs in this state; repeat it.")
    ] = None,
    page_size: Annotated[int, typer.Option(min=1, help="Runs a page.")] = 50,
    page_token: Annotated[str, typer.Option(help="Where the page before ended.")] = "",
    json: Json = False,
) -> None:
    """List runs, newest first."""
    from elite.trainer.v1 import trainer_pb2
    from elite_cli.connections import Connections
    from elite_cli.output import output_console, print_json
    from elite_cli.render.runs import render_runs

    states = [f"RUN_STATE_{name.name}" for name in state or []]
    request = trainer_pb2.ListRunsRequest(page_size=page_size, page_token=page_token, states=states)
    with Connections(context.obj) as connections:
        response = connections.trainer.call("ListRuns", request)
    if json:
        print_json(response)
    else:
        render_runs(output_console(), response)


@app.command()
def show(context: typer.Context, run_id: RunId, json: Json = False) -> None:
    """Show one run: where it is, its figures, its error."""
    from elite.trainer.v1 import trainer_pb2
    from elite_cli.connections import Connections
    from elite_cli.output import output_console, print_json
    from elite_cli.render.runs import render_run

    with Connections(context.obj) as connections:
        response = connections.trainer.call("GetRun", trainer_pb2.GetRunRequest(run_id=run_id))
    if json:
        print_json(response)
    else:
        render_run(output_console(), response.run)


@app.command()
def watch(context: typer.Context, run_id: RunId, json: Json = False) -> None:
    """Replay a run's events and follow it to its end. Ctrl-C detaches; the run goes on.

    Exits with 1 when the run did not succeed, and with 130 after Ctrl-C.
    """
    from elite_cli.connections import Connections
    from elite_cli.watch import watch_or_detach

    with Connections(context.obj) as connections:
        watch_or_detach(connections.trainer, run_id, json)


@app.command()
def cancel(context: typer.Context, run_id: RunId, json: Json = False) -> None:
    """Ask a run to stop; a running one first finishes its step and saves a checkpoint."""
    from elite.trainer.v1 import trainer_pb2
    from elite_cli.connections import Connections
    from elite_cli.output import output_console, print_json
    from elite_cli.render.names import run_state_name

    with Connections(context.obj) as connections:
        response = connections.trainer.call(
            "CancelRun", trainer_pb2.CancelRunRequest(run_id=run_id)
        )
    if json:
        print_json(response)
        return
    run = response.run
    if run.state == trainer_pb2.RUN_STATE_CANCELLED:
        output_console().print(f"Run {run_id} is cancelled.")
    else:
        state = run_state_name(run.state)
        output_console().print(f"Run {run_id} is {state} and has been asked to stop.")


@app.command()
def pause(context: typer.Context, run_id: RunId, json: Json = False) -> None:
    """Save a run and take it off its worker; `elite runs resume` goes on with it."""
    from elite.trainer.v1 import trainer_pb2
    from elite_cli.connections import Connections
    from elite_cli.output import output_console, print_json

    with Connections(context.obj) as connections:
        response = connections.trainer.call("PauseRun", trainer_pb2.PauseRunRequest(run_id=run_id))
    if json:
        print_json(response)
    elif response.run.state == trainer_pb2.RUN_STATE_PAUSED:
        output_console().print(f"Run {run_id} is paused.")
    else:
        output_console().print(f"Run {run_id} is being saved; then it is paused.")


@app.command()
def resume(
    context: typer.Context,
    run_id: RunId,
    watch: Annotated[bool, typer.Option("--watch/--detach", help="Follow it to its end.")] = False,
    json: Json = False,
) -> None:
    """Queue a paused, failed or cancelled run again, to go on from its last checkpoint."""
    from elite.trainer.v1 import trainer_pb2
    from elite_cli.connections import Connections
    from elite_cli.output import output_console, print_json, print_json_line
    from elite_cli.watch import watch_or_detach

    with Connections(context.obj) as connections:
        response = connections.trainer.call(
            "ResumeRun", trainer_pb2.ResumeRunRequest(run_id=run_id)
        )
        if json:
            (print_json_line if watch else print_json)(response)
        else:
            output_console().print(f"Run {run_id} is queued again.")
        if watch:
            watch_or_detach(connections.trainer, run_id, json)
