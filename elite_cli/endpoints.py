"""How a running `elite up` is found: a lock it holds and a file with its addresses.

The lock says whether the file is true. The kernel drops it when the process ends, however it
ends, so a file left behind by a killed stack is never believed, even when its process id has
been given to another process since.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

LOCK_FILE = "up.lock"
ENDPOINTS_FILE = "endpoints.json"
# A reader holds the lock for microseconds while it looks; a starting stack waits that out.
LOCK_PATIENCE_SECONDS = 0.5


class StackAlreadyRunningError(Exception):
    """Another `elite up` holds this state directory."""


@dataclass(frozen=True)
class Endpoints:
    """Addresses of a running stack. Metrics addresses are by process name."""

    pid: int
    stack_id: str
    addresses: dict[str, str]
    metrics_addresses: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=2) + "\n"


@contextmanager
def hold_stack_lock(state_directory: Path) -> Iterator[None]:
    """Holds the directory's stack lock. Raises `StackAlreadyRunningError` when it is held."""
    file_descriptor = os.open(state_directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
        while not _try_lock(file_descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise StackAlreadyRunningError(state_directory)
            time.sleep(0.02)
        yield
    finally:
        os.close(file_descriptor)


def _try_lock(file_descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(file_descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def stack_is_running(state_directory: Path) -> bool:
    """True when an `elite up` holds this directory."""
    try:
        file_descriptor = os.open(state_directory / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _try_lock(file_descriptor, fcntl.LOCK_SH)
    finally:
        os.close(file_descriptor)


def write_endpoints(state_directory: Path, endpoints: Endpoints) -> None:
    """Publishes the addresses, readable by this user only, in one step."""
    temporary = state_directory / f"{ENDPOINTS_FILE}.{os.getpid()}"
    temporary.touch(mode=0o600)
    temporary.write_text(endpoints.to_json(), encoding="utf-8")
    temporary.replace(state_directory / ENDPOINTS_FILE)


def remove_endpoints(state_directory: Path) -> None:
    """Takes the addresses back."""
    (state_directory / ENDPOINTS_FILE).unlink(missing_ok=True)


def read_endpoints(state_directory: Path) -> Endpoints | None:
    """The addresses of the stack running on this directory; None when none is."""
    if not stack_is_running(state_directory):
        return None
    try:
        text = (state_directory / ENDPOINTS_FILE).read_text(encoding="utf-8")
        return Endpoints(**json.loads(text))
    except (OSError, ValueError, TypeError):
        return None  # the stack is still starting, or already stopping
