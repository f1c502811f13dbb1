"""Health of a server, for probes that ask and for clients that watch."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc_health.v1 import health, health_pb2

# Between telling watchers that the server stops, and ending their calls.
_LAST_WORD_SECONDS = 0.1


class HealthServicer(health.aio.HealthServicer):
    """gRPC's own, whose watches end when the server stops.

    A watch would otherwise go on for as long as the server lets open calls go on, every time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stopping = asyncio.Event()

    async def Watch(  # noqa: N802 - gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> None:
        """Every change of a service's status, the last one too."""
        watching = asyncio.ensure_future(super().Watch(request, context))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((watching, stopping), return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                await asyncio.wait((watching,), timeout=_LAST_WORD_SECONDS)
        finally:
            stopping.cancel()
            watching.cancel()
        if watching.done():
            watching.result()

    async def stop(self) -> None:
        """Says NOT_SERVING of everything from now on, and ends all watches."""
        await self.enter_graceful_shutdown()
        self._stopping.set()
