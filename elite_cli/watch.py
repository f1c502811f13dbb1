"""Following a run: its events from a cursor on, over broken connections."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import typer

from elite.trainer.v1 import trainer_pb2
from elite_cli.client import CallError, ServiceClient
from elite_cli.errors import ExitCode
from elite_cli.output import note, output_console, print_json_line
from elite_cli.render.progress import RunProgressView
from elite_cli.render.runs import render_summary

RECONNECT_ATTEMPTS = 6
# Doubles with every attempt: 1, 2, 4, ... seconds; half a minute in all.
FIRST_PAUSE_SECONDS = 1.0
WAITING_POLL_SECONDS = 3.0

_RECONNECT_ON = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


def run_events(
    trainer: ServiceClient, run_id: str, pause: Callable[[float], None] = time.sleep
) -> Iterator[trainer_pb2.WatchRunResponse]:
    """Every event of a run, once, until the run ends.

    A stream that breaks is taken up after the last event seen. Raises `CallError` when the trainer
    stays away, or refuses.
    """
    cursor, failures = "", 0
    while True:
        request = trainer_pb2.WatchRunRequest(run_id=run_id, cursor=cursor)
        try:
            for response in trainer.stream("WatchRun", request):
                cursor, failures = response.event.cursor, 0
                yield response
            return
        except CallError as error:
            if error.code not in _RECONNECT_ON or failures == RECONNECT_ATTEMPTS:
                raise
            if error.code == grpc.StatusCode.DEADLINE_EXCEEDED:
                continue  # our own deadline: the run is just long
        failures += 1
        note(f"Lost the trainer; trying again ({failures} of {RECONNECT_ATTEMPTS}).")
        pause(FIRST_PAUSE_SECONDS * 2 ** (failures - 1))


def get_run(trainer: ServiceClient, run_id: str) -> trainer_pb2.Run:
    """The run's record. Raises `CallError`."""
    response: trainer_pb2.GetRunResponse = trainer.call(
        "GetRun", trainer_pb2.GetRunRequest(run_id=run_id)
    )
    return response.run


def watch_or_detach(trainer: ServiceClient, run_id: str, json: bool) -> None:
    """Watches a run until it ends; Ctrl-C detaches: the run goes on, the command exits with 130.

    Raises `typer.Exit` with 1 when the run did not succeed.
    """
    try:
        watch_run(trainer, run_id, json)
    except KeyboardInterrupt:
        note(f"\nDetached; run {run_id} goes on.")
        note(f"  watch it again: elite runs watch {run_id}")
        note(f"  cancel it:      elite runs cancel {run_id}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def watch_run(trainer: ServiceClient, run_id: str, json: bool) -> trainer_pb2.Run:
    """Shows a run until it ends, then its summary; gives its final record.

    Raises `typer.Exit` with 1 when the run did not succeed.
    """
    if json:
        for response in run_events(trainer, run_id):
            print_json_line(response)
    else:
        _show_events(trainer, run_id)
    run = get_run(trainer, run_id)
    if not json:
        render_summary(output_console(), run)
    if run.state != trainer_pb2.RUN_STATE_SUCCEEDED:
        raise typer.Exit(ExitCode.FAILURE)
    return run


def _show_events(trainer: ServiceClient, run_id: str) -> None:
    with RunProgressView(get_run(trainer, run_id)) as view, _waiting_shown(trainer, run_id, view):
        for response in run_events(trainer, run_id):
            view.show(response.event)


@contextmanager
def _waiting_shown(trainer: ServiceClient, run_id: str, view: RunProgressView) -> Iterator[None]:
    """Shows what a waiting run waits for: nothing happens to it then, so no event says so."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(WAITING_POLL_SECONDS):
            try:
                view.show_waiting(get_run(trainer, run_id))
            except CallError:
                continue  # the stream notices too, and reconnects

    thread = threading.Thread(target=ask, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
