"""One process of the local stack: started with a log, watched, and ended with all it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from services.common.launch import with_parent

LOG_TAIL_LINES = 15
# While a process becomes another program (exec), /proc shows its environment as empty, for some
# 0.1 ms. One that has none at all looks the same.
EXEC_SECONDS = 0.2


@dataclass(frozen=True)
class ProcessSpec:
    """What to run, and how to tell that it is up."""

    name: str
    command: tuple[str, ...]
    is_ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    # From SIGTERM to SIGKILL.
    stop_seconds: float = 15.0
    # Said when it is asked to stop.
    stop_note: str = ""


class ManagedProcess:
    """A started `ProcessSpec`, the leader of a session of its own.

    Of its own, so that Ctrl-C at the terminal reaches `elite` alone, which then stops the
    processes in order. The kernel kills it when `elite` is killed.
    """

    def __init__(self, spec: ProcessSpec, log_path: Path, mark: Mapping[str, str]) -> None:
        self.spec = spec
        self.log_path = log_path
        if log_path.exists():
            log_path.replace(log_path.with_suffix(".previous.log"))
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                with_parent(spec.command),
                env={**os.environ, **spec.environment, **mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id; also the id of its process group and session."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def describe_exit(self) -> str:
        """ "exit status 1" or "killed by SIGSEGV"."""
        status = self.exit_status or 0
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        return f"exit status {status}"

    def log_tail(self) -> tuple[str, ...]:
        """The last lines of its log."""
        try:
            text = self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ()
        return tuple(text.splitlines()[-LOG_TAIL_LINES:])

    def stop(self, hurry: Callable[[], bool]) -> bool:
        """SIGTERM, and after the grace period, or in a hurry, SIGKILL to its whole group.

        Returns False when it had to be killed.
        """
        if self.exit_status is None:
            self._process.terminate()
        deadline = time.monotonic() + self.spec.stop_seconds
        while self.exit_status is None and time.monotonic() < deadline and not hurry():
            time.sleep(0.05)
        ended_by_itself = self.exit_status is not None
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # also what it may have left in its group
        self._process.wait()
        return ended_by_itself


def processes_with(variable: str, value: str) -> list[int]:
    """Ids of the living processes that were started with `variable=value`, except this one.

    It finds what a process tree lost to re-parenting. Processes of other users cannot be read
    and are not ours.
    """
    wanted = f"{variable}={value}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in _environment(entry):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _environment(process: Path) -> list[bytes]:
    """What /proc says a process was started with, each `NAME=value`. Raises `OSError`."""
    deadline = time.monotonic() + EXEC_SECONDS
    while not (text := (process / "environ").read_bytes()) and time.monotonic() < deadline:
        (process / "exe").readlink()  # the kernel's own threads have none, nor have the dead
        time.sleep(0)
    return text.split(b"\0")
