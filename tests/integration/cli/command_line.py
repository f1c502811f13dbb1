"""`elite` as a process of its own, and a stack that it has started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from elite_cli.stack.process import processes_with
from elite_cli.stack.process_group import STACK_VARIABLE

COMMAND = (sys.executable, "-m", "elite_cli.main")


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@dataclass(frozen=True)
class Elite:
    """`elite` on one state directory; no address of the surroundings leaks in."""

    state_directory: Path

    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if "ELITE_" not in name}
        return {**clean, "ELITE_CLI_STATE_DIRECTORY": str(self.state_directory), "COLUMNS": "100"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts it, as a shell with job control would: in a process group of its own."""
        return subprocess.Popen(
            [*COMMAND, *arguments], env=self.environment(), text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs it to its end and checks the exit code; there is never a traceback."""
        done = subprocess.run(
            [*COMMAND, *arguments], env=self.environment(), text=True, capture_output=True,
            timeout=240, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def json(self, *arguments: str, code: int = 0) -> Any:
        """The object it prints; nothing else may be on stdout."""
        return json.loads(self.run(*arguments, "--json", code=code).stdout)

    def json_lines(self, *arguments: str, code: int = 0) -> list[Any]:
        """The objects it prints, one a line."""
        lines = self.run(*arguments, "--json", code=code).stdout.splitlines()
        return [json.loads(line) for line in lines]


@dataclass(frozen=True)
class Stack:
    """A running `elite up`."""

    elite: Elite
    process: subprocess.Popen[str]
    endpoints: dict[str, Any]

    def living(self) -> list[int]:
        """Process ids of the stack, `elite up` itself left out."""
        return processes_with(STACK_VARIABLE, self.endpoints["stack_id"])

    def commands(self) -> dict[int, str]:
        """Command lines of the living processes by id."""
        found = {}
        for pid in self.living():
            with suppress(OSError):  # it has just ended
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                found[pid] = line.replace(b"\0", b" ").decode()
        return found

    def stop(self, how: signal.Signals) -> tuple[int, str]:
        """Sends the signal, waits for the end; exit status and stderr."""
        self.process.send_signal(how)
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors


def start_stack(elite: Elite, *options: str) -> Stack:
    """Starts `elite up` on free ports and waits until it is up."""
    process = elite.start("up", "--port-base", "0", "--json", *options)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        pytest.fail(f"elite up did not start: {process.communicate()[1]}")
    return Stack(elite, process, json.loads(line))
