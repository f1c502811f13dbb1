"""The stress test, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable

from elite.profiler.v1 import profiler_pb2
from elite_cli.client import ServiceClient
from elite_cli.errors import CliError, ExitCode
from elite_cli.output import error_console

OnMessage = Callable[[profiler_pb2.RunStressTestResponse], None]


def _ignore(_: profiler_pb2.RunStressTestResponse) -> None:
    return None


def run_stress_test(
    profiler: ServiceClient, *, quick: bool, on_message: OnMessage = _ignore
) -> profiler_pb2.NodeProfile:
    """Runs it to the end and gives the profile with its measured fields.

    Progress goes to stderr: a bar on a terminal, else a line for each probe. `on_message` sees
    every message of the stream. Raises `CliError` when the test fails or ends without a profile.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = error_console()
    columns = (
        TextColumn("Stress test"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.description}"), TimeElapsedColumn(),
    )  # fmt: skip
    request = profiler_pb2.RunStressTestRequest(quick=quick)
    profile: profiler_pb2.NodeProfile | None = None
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("starting", total=None)
        for message in profiler.stream("RunStressTest", request):
            on_message(message)
            total = message.total_probes or None
            bar.update(task, completed=message.completed_probes, total=total)
            if message.probe:
                bar.update(task, description=message.probe)
                console.print(f"  {message.probe}: {message.result}", markup=False)
            if message.HasField("profile"):
                profile = message.profile
    if profile is None:
        raise CliError("the stress test ended without a profile", exit_code=ExitCode.UNAVAILABLE)
    return profile
