"""A service inside the caller's own process, on a Unix socket.

It is the same server with the same interceptors, so what works here works over the network.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry

from services.common.metrics import RpcMetrics
from services.common.server import ServiceDefinition, start_server
from services.common.settings import ServerSettings


@contextmanager
def serve_locally(service: ServiceDefinition, settings: ServerSettings) -> Iterator[str]:
    """Serves in a background thread for the length of the `with`; yields the address.

    Raises whatever kept the server from starting.
    """
    started = threading.Event()
    failure: list[BaseException] = []
    loop = asyncio.new_event_loop()
    stopping = asyncio.Event()
    address = [settings.address]

    async def run() -> None:
        """Serves until it is told to stop."""
        metrics = RpcMetrics(service.metrics_name, CollectorRegistry())
        running = await start_server(service, settings, metrics)
        if running.port:
            address[0] = f"{settings.address.rpartition(':')[0]}:{running.port}"
        started.set()
        await stopping.wait()
        await running.stop()

    def run_loop() -> None:
        """The thread: what keeps the server from starting is kept for its starter."""
        try:
            # Calls cut off by the stop still have cleaning up to do: the runner waits for it.
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(run())
        except BaseException as error:
            failure.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run_loop, name=f"local-{service.metrics_name}", daemon=True)
    thread.start()
    started.wait()
    if failure:
        raise failure[0]
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(timeout=settings.shutdown_grace_seconds + 5)
