"""Several processes as one: started, watched, and stopped in the reverse order."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from elite_cli.errors import CliError
from elite_cli.stack.process import ManagedProcess, ProcessSpec, processes_with

# Marks every process of one group, and whatever they start in turn.
# Not a setting: engines, which are given none, carry it too.
STACK_VARIABLE = "_ELITE_STACK_ID"

START_SECONDS = 60.0
POLL_SECONDS = 0.1
LEFTOVER_SECONDS = 10.0

Report = Callable[[str], None]


class ProcessGroup:
    """Processes with a common mark. Leaving the `with` stops them all; none is alive afterwards."""

    def __init__(self, stack_id: str, logs_directory: Path, report: Report) -> None:
        self.stack_id = stack_id
        self._logs_directory = logs_directory
        self._report = report
        self._running: list[ManagedProcess] = []
        self._hurry = False

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with _further_signals(self._be_quick):
            while self._running:
                self._stop(self._running.pop())
            self._kill_leftovers()

    def start(self, specs: list[ProcessSpec], start_seconds: float = START_SECONDS) -> None:
        """Starts them at once and returns when all are ready.

        Raises `CliError` when one ends, or is not ready in time.
        """
        started = [self._start(spec) for spec in specs]
        deadline = time.monotonic() + start_seconds
        for process in started:
            while not process.spec.is_ready():
                self.check()
                if time.monotonic() > deadline:
                    raise _death(process, f"was not ready after {start_seconds:.0f} s")
                time.sleep(POLL_SECONDS)
            self._report(f"{process.spec.name} is up")

    def check(self) -> None:
        """Raises `CliError`, with the tail of its log, when a process has ended."""
        for process in self._running:
            if process.exit_status is not None:
                raise _death(process, "ended")

    def living(self) -> list[int]:
        """Ids of all processes with the group's mark that are alive, whoever started them."""
        return processes_with(STACK_VARIABLE, self.stack_id)

    def _start(self, spec: ProcessSpec) -> ManagedProcess:
        log_path = self._logs_directory / f"{spec.name}.log"
        mark = {STACK_VARIABLE: self.stack_id}
        process = ManagedProcess(spec, log_path, mark)
        self._running.append(process)
        return process

    def _be_quick(self) -> None:
        self._hurry = True

    def _stop(self, process: ManagedProcess) -> None:
        name = process.spec.name
        self._hurry = False  # Ctrl-C skips the wait for one process, not for all that follow
        if process.exit_status is None:
            self._report(f"stopping {name}{process.spec.stop_note}")
        if not process.stop(lambda: self._hurry):
            self._report(f"{name} did not stop by itself and was killed")

    def _kill_leftovers(self) -> None:
        """What lost its parents on the way, such as an engine whose worker was killed."""
        deadline = time.monotonic() + LEFTOVER_SECONDS
        while (left := self.living()) and time.monotonic() < deadline:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)


def _death(process: ManagedProcess, verb: str) -> CliError:
    how = f" ({process.describe_exit()})" if process.exit_status is not None else ""
    tail = tuple(f"  {line}" for line in process.log_tail())
    return CliError(
        f"{process.spec.name} {verb}{how}; its log is {process.log_path}",
        hints=("last lines of the log:", *tail) if tail else (),
    )


@contextmanager
def _further_signals(act: Callable[[], None]) -> Iterator[None]:
    """While stopping, a further Ctrl-C or SIGTERM calls `act` instead of breaking off."""
    with _handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), act):
        yield


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, so that all is stopped in order."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with _handling((signal.SIGTERM, signal.SIGHUP), interrupt):
        yield


@contextmanager
def _handling(numbers: tuple[signal.Signals, ...], act: Callable[[], None]) -> Iterator[None]:
    before = {number: signal.signal(number, lambda *_: act()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
