"""Several worker processes behind one port.

The parent reserves the port and starts the workers: each is the same program, a server of its own
with SO_REUSEPORT, and the kernel deals connections (not calls) out among them. The parent starts a
worker again that dies, passes SIGTERM and SIGINT on, and serves the metrics of all workers. It
imports no gRPC, whose threads do not survive a fork; workers are started, not forked.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from prometheus_client import Counter

from services.common.addresses import AddressError, bound_address, is_unix_socket, reserve_port
from services.common.launch import with_parent
from services.common.metrics import serve_worker_metrics
from services.common.settings import ServerSettings

logger = logging.getLogger("elite.processes")

# Set for workers: the pipe on which they tell their parent that they serve.
_READY_VARIABLE = "ELITE_WORKER_READY_FD"

# Pauses before a worker is started again: after one quick death, after two in a row, and so on.
# After one more than these the parent gives up.
RESTART_PAUSES_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0)
# A worker that lived longer did not die quickly.
STABLE_SECONDS = 30.0
# What a worker may take beyond its grace period before it is killed.
STOP_MARGIN_SECONDS = 2.0


def is_worker() -> bool:
    """True in a process that was started by `serve_processes`."""
    return _READY_VARIABLE in os.environ


def report_ready() -> None:
    """Tells the parent, if there is one, that this worker serves. To be called once."""
    if is_worker():
        pipe = int(os.environ[_READY_VARIABLE])
        os.write(pipe, b"1")
        os.close(pipe)


def process_count(wanted: int) -> int:
    """How many processes to run for a setting; 0 wants one per core this process may run on."""
    return 1 if is_worker() else wanted or len(os.sched_getaffinity(0))


def serve_processes(module: str, name: str, count: int, settings: ServerSettings) -> int:
    """Runs `count` workers, each `python -m module`, until SIGTERM or SIGINT; then all drain.

    `module` reads its settings, of the type of `settings`, from the environment; `name` is the
    service's in metrics. Returns the exit status: 0 after a stop that was asked for, else that of
    the worker that did not stay alive, or 1. Raises `AddressError`.
    """
    prefix = settings.model_config["env_prefix"]
    if is_unix_socket(settings.address):
        raise AddressError(
            f"{prefix}WORKER_PROCESSES asks for {count} processes, which cannot share the Unix "
            f"socket {settings.address}: set it to 1, or {prefix}ADDRESS to host:port"
        )
    with (
        reserve_port(settings.address) as reserved,
        tempfile.TemporaryDirectory(prefix=f"elite-{name}-metrics-") as metrics_directory,
    ):
        restarts = serve_worker_metrics(settings.metrics_address, name, metrics_directory)
        address = bound_address(settings.address, reserved)
        environment = os.environ | {
            f"{prefix}ADDRESS": address,
            f"{prefix}METRICS_ADDRESS": "",
            "PROMETHEUS_MULTIPROC_DIR": metrics_directory,
        }
        stop_seconds = settings.shutdown_grace_seconds + STOP_MARGIN_SECONDS
        workers = _Workers((sys.executable, "-m", module), environment, stop_seconds, restarts)
        return asyncio.run(workers.run(count, address))


class _Workers:
    """Processes of one command, kept alive until they are told to stop."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        stop_seconds: float,
        restarts: Counter,
    ) -> None:
        self._command, self._environment = command, environment
        self._stop_seconds, self._restarts = stop_seconds, restarts
        self._stopping = asyncio.Event()
        self._exit_status = 0

    async def run(self, count: int, address: str) -> int:
        """Returns the exit status once all have ended."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        async with asyncio.TaskGroup() as group:
            # The first alone: what keeps it from serving keeps all, and is said once.
            for slots in (1, count - 1):
                up = [asyncio.Event() for _ in range(slots)]
                for one in up:
                    group.create_task(self._keep_alive(one))
                for one in up:
                    await one.wait()
                if self._stopping.is_set():
                    break
            else:
                logger.info("all workers serve", extra={"address": address, "processes": count})
        logger.info("all workers stopped", extra={"exit_status": self._exit_status})
        return self._exit_status

    def _stop(self) -> None:
        if not self._stopping.is_set():
            logger.info("stopping all workers")
        self._stopping.set()

    async def _keep_alive(self, up: asyncio.Event) -> None:
        """One worker, and another when it dies. Sets `up` when the first serves, or at the end."""
        quick_deaths = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            status = await self._run_one(up)
            if self._stopping.is_set():
                break
            lived_seconds = time.monotonic() - started
            quick_deaths = quick_deaths + 1 if lived_seconds < STABLE_SECONDS else 1
            extra = {"exit_status": status, "lived_seconds": round(lived_seconds, 3)}
            if not up.is_set() or quick_deaths > len(RESTART_PAUSES_SECONDS):
                logger.error("a worker does not stay alive: giving up", extra=extra)
                self._exit_status = max(status, 1)
                self._stop()
                break
            logger.warning("a worker died and is started again", extra=extra)
            self._restarts.inc()
            with suppress(TimeoutError):
                pause = RESTART_PAUSES_SECONDS[quick_deaths - 1]
                await asyncio.wait_for(self._stopping.wait(), pause)
        up.set()

    async def _run_one(self, up: asyncio.Event) -> int:
        """One worker from its start to its end; returns its exit status, negative for a signal."""
        process = await self._start(up)
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not ended.done():
            process.terminate()
            await asyncio.wait((ended,), timeout=self._stop_seconds)
        if not ended.done():
            logger.warning("a worker did not stop and is killed", extra={"pid": process.pid})
            process.kill()
        return await ended

    async def _start(self, up: asyncio.Event) -> asyncio.subprocess.Process:
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *with_parent(self._command),
                env={**self._environment, _READY_VARIABLE: str(write_end)},
                pass_fds=(write_end,),
                process_group=0,  # Ctrl-C at the terminal reaches the parent, which passes it on
            )
        finally:
            os.close(write_end)

        def on_report() -> None:
            """The worker has reported that it serves, or has ended."""
            loop.remove_reader(read_end)
            if os.read(read_end, 1):  # nothing when the worker ended instead
                up.set()
            os.close(read_end)

        loop = asyncio.get_running_loop()
        loop.add_reader(read_end, on_report)
        return process
