"""The stress test, with a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from elite.profiler.v1 import profiler_pb2
from elite_cli.client import CallError, ServiceClient
from elite_cli.errors import CliError, ExitCode
from elite_cli.output import error_console, note

OnMessage = Callable[[profiler_pb2.RunStressTestResponse], None]

BUSY = "BUSY"
# A profiler that has just started looks at its attention kernels, and one test runs at a time.
BUSY_PATIENCE_SECONDS = 120.0
BUSY_PAUSE_SECONDS = 1.0


def _ignore(_: profiler_pb2.RunStressTestResponse) -> None:
    return None


def run_stress_test(
    profiler: ServiceClient, *, quick: bool, on_message: OnMessage = _ignore
) -> profiler_pb2.NodeProfile:
    """Runs it to the end and gives the profile with its measured fields.

    Progress goes to stderr: a bar on a terminal, and a line for each probe. `on_message` sees
    every message of the stream. Raises `CliError` when the test fails or ends without a profile.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = error_console()
    columns = (
        TextColumn("Stress test"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.description}"), TimeElapsedColumn(),
    )  # fmt: skip
    profile: profiler_pb2.NodeProfile | None = None
    silent = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=silent) as bar:
        task = bar.add_task("starting", total=None)
        for message in _messages(profiler, profiler_pb2.RunStressTestRequest(quick=quick)):
            on_message(message)
            total = message.total_probes or None
            bar.update(task, completed=message.completed_probes, total=total)
            if message.probe:
                bar.update(task, description=message.probe)
                text = f"  {message.probe}: {message.result}"
                console.print(text, markup=False, soft_wrap=True)
            if message.HasField("profile"):
                profile = message.profile
    if profile is None:
        raise CliError("the stress test ended without a profile", exit_code=ExitCode.UNAVAILABLE)
    return profile


def _messages(
    profiler: ServiceClient, request: profiler_pb2.RunStressTestRequest
) -> Iterator[profiler_pb2.RunStressTestResponse]:
    """The test's messages; waits for another test to end first."""
    deadline = time.monotonic() + BUSY_PATIENCE_SECONDS
    is_waiting = False
    while True:
        try:
            yield from profiler.stream("RunStressTest", request)
            return
        except CallError as error:
            if error.reason != BUSY or time.monotonic() > deadline:
                raise
        if not is_waiting:
            note("Another test is running on this profiler; waiting for its end.")
        is_waiting = True
        time.sleep(BUSY_PAUSE_SECONDS)
