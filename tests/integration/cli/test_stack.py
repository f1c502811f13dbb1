"""`elite up`: it starts, it is found, it stops, and it never leaves a process behind."""

from __future__ import annotations

import os
import signal
import socket
import stat
from pathlib import Path

from elite_cli.endpoints import ENDPOINTS_FILE
from tests.integration.cli.command_line import Elite, Stack, start_stack, wait_until


def pid_of(stack: Stack, words: str) -> int:
    """The process of the stack with these words on its command line."""
    return next(pid for pid, command in stack.commands().items() if words in command)


def test_up_and_down(elite: Elite) -> None:
    stack = start_stack(elite)
    file = elite.state_directory / ENDPOINTS_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(stack.living()) >= 6  # broker, three services, worker and its pool child
    assert elite.json("runs", "list") == {"runs": [], "nextPageToken": ""}
    assert len(elite.json("tiers")["tiers"]) >= 11
    second = elite.run("up", "--port-base", "0", code=1)
    assert "already running" in second.stderr
    assert "--state-directory" in second.stderr
    status, errors = stack.stop(signal.SIGINT)
    assert status == 0
    order = [line for line in errors.splitlines() if line.startswith("stopping")]
    assert order[0].startswith("stopping worker, ")
    assert order[-1] == "stopping valkey"
    assert stack.living() == []
    assert not file.exists()
    refused = elite.run("runs", "list", code=3)
    assert "elite up" in refused.stderr


def test_sigkill_leaves_nothing(elite: Elite) -> None:
    stack = start_stack(elite)
    stack.process.kill()
    stack.process.communicate()
    wait_until(lambda: not stack.living(), seconds=20)
    # What it left in its folder is not believed, and does not keep the next one from starting.
    assert (elite.state_directory / ENDPOINTS_FILE).exists()
    elite.run("runs", "list", code=3)
    again = start_stack(elite)
    assert again.stop(signal.SIGTERM)[0] == 0
    assert again.living() == []


def test_a_service_that_dies_takes_the_stack_down(elite: Elite) -> None:
    stack = start_stack(elite)
    os.kill(pid_of(stack, "services.planner"), signal.SIGKILL)
    _, errors = stack.process.communicate(timeout=60)
    assert stack.process.returncode == 1
    assert "error: planner ended (killed by SIGKILL); its log is " in errors
    assert "last lines of the log:" in errors
    assert stack.living() == []


def binds(taken: socket.socket, port: int) -> bool:
    try:
        taken.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def test_a_port_that_is_taken(elite: Elite) -> None:
    with socket.socket() as taken:
        # Below the ephemeral range's end, so that the stack's other ports have room above it.
        port = next(port for port in range(20_000, 60_000) if binds(taken, port))
        taken.listen()
        done = elite.run("up", "--port-base", str(port), code=1)
    assert f"port {port} (profiler) cannot be used" in done.stderr
    assert "--port-base" in done.stderr


def test_a_state_directory_that_cannot_be_made(elite: Elite, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = str(tmp_path / "file" / "state")
    done = elite.run("up", "--port-base", "0", "--state-directory", place, code=1)
    assert done.stderr.startswith("error: --state-directory: cannot make ")
