"""gRPC face of the profiler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

from elite.profiler.v1 import profiler_pb2, profiler_pb2_grpc
from services.common.errors import ServiceError
from services.common.server import ServiceDefinition
from services.profiler.convert import capacity
from services.profiler.profiler import Profiler
from services.profiler.settings import ProfilerSettings

FULL_NAME = profiler_pb2.DESCRIPTOR.services_by_name["ProfilerService"].full_name


class ProfilerServicer(profiler_pb2_grpc.ProfilerServiceServicer):
    """Converts; `Profiler` does the work. What blocks runs in threads."""

    def __init__(self, profiler: Profiler) -> None:
        self._profiler = profiler

    async def GetProfile(  # noqa: N802
        self,
        request: profiler_pb2.GetProfileRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> profiler_pb2.GetProfileResponse:
        """A fast snapshot."""
        profile = await asyncio.to_thread(self._profiler.snapshot)
        return profiler_pb2.GetProfileResponse(profile=profile)

    async def RunStressTest(  # noqa: N802
        self,
        request: profiler_pb2.RunStressTestRequest,
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[profiler_pb2.RunStressTestResponse]:
        """Progress probe by probe, then the profile with its measured fields."""
        results = self._profiler.stress_test(
            memory_fraction=request.memory_fraction, quick=request.quick
        )
        response = profiler_pb2.RunStressTestResponse()
        async with aclosing(results):
            async for found in results:
                response = profiler_pb2.RunStressTestResponse(
                    probe=found.probe,
                    result=found.result,
                    completed_probes=found.completed,
                    total_probes=found.total,
                )
                if found.completed < found.total:
                    yield response
        response.profile.CopyFrom(await asyncio.to_thread(self._profiler.snapshot))
        yield response

    async def WatchCapacity(  # noqa: N802
        self,
        request: profiler_pb2.WatchCapacityRequest,
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[profiler_pb2.WatchCapacityResponse]:
        """What is free, at the interval asked for, until the caller leaves."""
        while True:
            yield capacity(await asyncio.to_thread(self._profiler.snapshot))
            await asyncio.sleep(request.interval_seconds)


def profiler_service(settings: ProfilerSettings) -> ServiceDefinition:
    """The profiler as a service: it is ready while the machine can be read."""
    profiler = Profiler(settings)
    background: list[asyncio.Task[None]] = []

    async def is_ready() -> bool:
        """Whether the machine can be read."""
        try:
            await asyncio.to_thread(profiler.snapshot)
        except (ServiceError, OSError):
            return False
        return True

    async def start() -> None:
        """Probes attention kernels in the background."""
        background.append(asyncio.create_task(profiler.probe_kernels_if_unknown()))

    async def stop() -> None:
        """Ends what runs in the background, children included."""
        for task in background:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await profiler.close()

    return ServiceDefinition(
        full_name=FULL_NAME,
        metrics_name="profiler",
        register=lambda server: profiler_pb2_grpc.add_ProfilerServiceServicer_to_server(
            ProfilerServicer(profiler), server
        ),
        is_ready=is_ready,
        start=start,
        stop=stop,
    )
