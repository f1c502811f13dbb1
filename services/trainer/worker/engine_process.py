"""One engine as a child process: its own session, its events on a pipe, its log in a file.

It never outlives its supervisor: the kernel kills it when the supervisor dies (PR_SET_PDEATHSIG),
and `close` kills the whole process group. Linux only.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from services.common.launch import with_parent

logger = logging.getLogger("elite.trainer.worker")

# A line of the event protocol is a few hundred bytes.
LONGEST_LINE_BYTES = 1 << 20
_READ_BYTES = 1 << 16


class EngineProcess:
    """A started engine. Use it from the event loop that started it."""

    def __init__(self, process: subprocess.Popen[bytes], event_pipe: int) -> None:
        self._process = process
        self._event_pipe = event_pipe
        self._exited = asyncio.create_task(asyncio.to_thread(_wait_for_exit, process.pid))

    @classmethod
    def start(cls, command: Sequence[str], log_path: Path) -> EngineProcess:
        """Starts `command ... --events-fd N`. Raises `OSError` when it cannot be started."""
        if shutil.which(command[0]) is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such program", command[0])
        read_end, write_end = os.pipe()
        try:
            with log_path.open("ab") as log:
                process = subprocess.Popen(
                    with_parent([*command, "--events-fd", str(write_end)]),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(write_end,),
                    env=_environment(),
                    start_new_session=True,
                )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        return cls(process, read_end)

    @property
    def process_id(self) -> int:
        """Process id, which is also the id of its group and session."""
        return self._process.pid

    async def lines(self) -> AsyncIterator[bytes]:
        """Yields the lines of the event pipe until the engine has exited and all are read.

        A line longer than `LONGEST_LINE_BYTES` is dropped. A grandchild that keeps the pipe open
        does not keep the supervisor waiting.
        """
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(self._event_pipe, "rb", 0)
        )
        splitter = _LineSplitter()
        try:
            while chunk := await self._next_chunk(reader):
                for line in splitter.feed(chunk):
                    yield line
        finally:
            transport.close()

    async def exited(self) -> None:
        """Returns when the engine has exited; it is not reaped yet."""
        await asyncio.shield(self._exited)

    def ask_to_stop(self) -> None:
        """SIGTERM: checkpoint and exit. To the engine alone; it sees to its own children."""
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGTERM)

    def dump_stacks(self) -> None:
        """Asks for the stacks of all its threads, in its log."""
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGUSR1)

    def kill(self) -> None:
        """SIGKILL to the whole group. Safe while the engine is not reaped: its id is taken."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def close(self) -> int:
        """Kills whatever is left of the group and reaps the engine.

        Returns its exit status; negative: the signal that ended it.
        """
        self.kill()
        await self.exited()
        return self._process.wait()

    async def _next_chunk(self, reader: asyncio.StreamReader) -> bytes:
        """The next bytes; empty at the end of the pipe, or of the engine and what it wrote."""
        reading = asyncio.create_task(reader.read(_READ_BYTES))
        either: set[asyncio.Task[Any]] = {reading, self._exited}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            # The engine is gone: whatever it wrote is in the pipe and arrives at once.
            await asyncio.wait({reading}, timeout=0.2)
        if not reading.done():
            reading.cancel()
            return b""
        return reading.result()


class _LineSplitter:
    def __init__(self) -> None:
        self._rest = b""
        self._is_too_long = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Complete lines, without their ends."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if lines and self._is_too_long:
            del lines[0]
            self._is_too_long = False
        if len(self._rest) > LONGEST_LINE_BYTES:
            logger.warning("dropped an overlong line of the engine")
            self._rest, self._is_too_long = b"", True
        return [line for line in lines if line.strip()]


def _environment() -> dict[str, str]:
    """An engine is told everything on its command line; our variables may hold secrets."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ELITE_")}


def _wait_for_exit(process_id: int) -> None:
    """Does not reap: until then the id is not given to another process."""
    os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOWAIT)
