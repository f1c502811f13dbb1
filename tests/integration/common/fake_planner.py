"""A planner whose methods each end in one way of their own, and its clients."""

# gRPC fixes the names and the arguments of the methods.
# ruff: noqa: ARG002, N802

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry

from elite.planner.v1 import planner_pb2 as pb
from elite.planner.v1 import planner_pb2_grpc
from services.common.errors import ErrorReason, ServiceError, invalid_field
from services.common.local import serve_locally
from services.common.metrics import RpcMetrics
from services.common.server import RunningServer, ServiceDefinition, start_server
from services.common.settings import ServerSettings

FULL_NAME = "elite.planner.v1.PlannerService"
ANY_PORT = "127.0.0.1:0"
# Long enough never to be met on a loaded machine; only what hangs meets it.
CALL_SECONDS = 10.0


class Planner(planner_pb2_grpc.PlannerServiceServicer):
    """Each method ends in one way of its own."""

    def __init__(self) -> None:
        self.planned: list[pb.PlanRequest] = []
        self.running = threading.Semaphore(0)
        self.release = threading.Event()
        self.cancelled = threading.Event()
        self.ready = True

    async def Plan(self, request: pb.PlanRequest, context: Any) -> pb.PlanResponse:
        self.planned.append(request)
        return pb.PlanResponse(notes=[request.model.model_id])

    async def ListTiers(self, request: pb.ListTiersRequest, context: Any) -> pb.ListTiersResponse:
        return pb.ListTiersResponse(tiers=[pb.Tier(tier=7, context_tokens=1024)])

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Any
    ) -> pb.ListModelsResponse:
        """Runs until released."""
        self.running.release()
        try:
            while not self.release.is_set():  # noqa: ASYNC110 - set by another thread
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return pb.ListModelsResponse(models=[pb.ModelSummary(model_id="released")])

    async def ListGpus(self, request: pb.ListGpusRequest, context: Any) -> pb.ListGpusResponse:
        raise RuntimeError("could not open /home/someone/token")

    async def Estimate(self, request: pb.EstimateRequest, context: Any) -> pb.EstimateResponse:
        raise invalid_field("tier", "is 9", "a tier number from ListTiers")

    async def ListOptimizations(
        self, request: pb.ListOptimizationsRequest, context: Any
    ) -> pb.ListOptimizationsResponse:
        raise ServiceError(ErrorReason.BUSY, "käse " * 20_000)

    async def is_ready(self) -> bool:
        if not self.ready:
            raise ConnectionError("the store is gone")
        return True

    def definition(self) -> ServiceDefinition:
        def register(server: grpc.aio.Server) -> None:
            planner_pb2_grpc.add_PlannerServiceServicer_to_server(self, server)

        return ServiceDefinition(FULL_NAME, "planner", register, is_ready=self.is_ready)


def settings(address: str = ANY_PORT, **others: Any) -> ServerSettings:
    return ServerSettings(address=address, shutdown_grace_seconds=5, **others)


@contextmanager
def connected(
    planner: Planner, **others: Any
) -> Iterator[tuple[planner_pb2_grpc.PlannerServiceStub, grpc.Channel]]:
    """A server of this test's own and a client of it."""
    with serve_locally(planner.definition(), settings(**others)) as address:
        with grpc.insecure_channel(address) as channel:
            yield planner_pb2_grpc.PlannerServiceStub(channel), channel
        planner.release.set()


def eventually(condition: Callable[[], bool]) -> bool:
    """True once `condition` holds; a server may finish a call after its client."""
    deadline = time.monotonic() + CALL_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def good_request() -> pb.PlanRequest:
    request = pb.PlanRequest(model={"model_id": "smollm2-135m"})
    request.machine.hypothetical.gpu_id = "rtx-3090"
    request.machine.hypothetical.host_memory_bytes = 2**34
    return request


async def started(
    planner: Planner, registry: CollectorRegistry | None = None, address: str = ANY_PORT
) -> RunningServer:
    """A server in this test's own event loop."""
    metrics = RpcMetrics("planner", registry or CollectorRegistry())
    return await start_server(planner.definition(), settings(address), metrics)
