"""The gRPC face of the trainer: convert, call `Runs`, convert."""

# gRPC chooses the methods' names and arguments.
# ruff: noqa: N802, ARG002

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import Any

import grpc.aio
import redis

from elite.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from services.common.errors import ErrorReason, ServiceError
from services.common.server import ServiceDefinition
from services.trainer.api import convert
from services.trainer.api.runs import Runs
from services.trainer.api.settings import TrainerApiSettings
from services.trainer.api.sweep import Sweep
from services.trainer.api.watch import watch_run
from services.trainer.jobs.connection import async_client, store_errors
from services.trainer.jobs.fleet import Fleet
from services.trainer.jobs.queue import RunQueue
from services.trainer.jobs.retention import Retention
from services.trainer.jobs.store import RunStore

SERVICE_NAME = "elite.trainer.v1.TrainerService"
_SWEEPING_CONNECTIONS = 8


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """Every method raises `ServiceError`; STORE_UNAVAILABLE while Redis is away."""

    def __init__(self, settings: TrainerApiSettings) -> None:
        self._settings = settings
        # A call has one command under way at most: a watch holds one while it waits.
        connections = settings.max_concurrent_requests + _SWEEPING_CONNECTIONS
        self._client = async_client(settings.trainer, connections)
        self._store = RunStore(self._client, settings.trainer.event_stream_length)
        self._queue = RunQueue(settings.trainer)
        fleet = Fleet(self._client, settings.trainer)
        self._runs = Runs(settings.trainer, self._store, self._queue, fleet)
        retention = Retention(self._client, settings.trainer)
        self._sweep = Sweep(settings, self._store, fleet, self._runs, retention)
        self._sweeping: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    async def CreateRun(
        self, request: trainer_pb2.CreateRunRequest, context: Any
    ) -> trainer_pb2.CreateRunResponse:
        """Records and queues a run."""
        with store_errors(self._settings.trainer):
            return trainer_pb2.CreateRunResponse(run=await self._runs.create(request))

    async def GetRun(
        self, request: trainer_pb2.GetRunRequest, context: Any
    ) -> trainer_pb2.GetRunResponse:
        """Reads one run."""
        with store_errors(self._settings.trainer):
            return trainer_pb2.GetRunResponse(run=await self._runs.get(request.run_id))

    async def ListRuns(
        self, request: trainer_pb2.ListRunsRequest, context: Any
    ) -> trainer_pb2.ListRunsResponse:
        """Reads a page of runs, newest first."""
        size = convert.page_size(request)
        before, states = convert.page_start(request), convert.wanted_states(request.states)
        with store_errors(self._settings.trainer):
            runs = await self._runs.page(before, states, size + 1)
        return convert.page(runs, size, self._settings.max_message_bytes)

    async def WatchRun(self, request: trainer_pb2.WatchRunRequest, context: Any) -> None:
        """Streams a run's events until it ends.

        Raises SERVER_STOPPING as soon as the server stops: a run may outlast any grace.
        """
        watching = asyncio.ensure_future(self._watch(request, context))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((watching, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            watching.cancel()
            await asyncio.wait((watching,))  # it gives its connection to Redis back
        if watching.cancelled():
            problem = "the trainer stops: watch again from the cursor of the last event you have"
            raise ServiceError(ErrorReason.SERVER_STOPPING, problem)
        watching.result()

    async def _watch(self, request: trainer_pb2.WatchRunRequest, context: Any) -> None:
        """Writes a run's events until it ends.

        Writes are shielded: grpc.aio leaks the message of a write whose task is cancelled, as that
        of a watcher who leaves is (https://github.com/grpc/grpc/issues/43360). And awaited to
        their end: gRPC refuses to send the call's status while one is under way. One that fails,
        because the watcher has left meanwhile, still costs some hundred bytes inside gRPC.
        """
        with store_errors(self._settings.trainer):
            watching = watch_run(
                self._client, self._store, request.run_id, request.cursor,
                self._settings.watch_outage_seconds, self._settings.trainer.redis_timeout_seconds,
            )  # fmt: skip
            async with aclosing(watching) as events:
                async for event in events:
                    response = trainer_pb2.WatchRunResponse(event=event)
                    writing = asyncio.ensure_future(context.write(response))
                    try:
                        await asyncio.shield(writing)
                    finally:
                        await asyncio.wait((writing,))

    async def CancelRun(
        self, request: trainer_pb2.CancelRunRequest, context: Any
    ) -> trainer_pb2.CancelRunResponse:
        """Ends a run, or asks its worker to."""
        with store_errors(self._settings.trainer):
            return trainer_pb2.CancelRunResponse(run=await self._runs.cancel(request.run_id))

    async def PauseRun(
        self, request: trainer_pb2.PauseRunRequest, context: Any
    ) -> trainer_pb2.PauseRunResponse:
        """Takes a run off its worker until it is resumed."""
        with store_errors(self._settings.trainer):
            return trainer_pb2.PauseRunResponse(run=await self._runs.pause(request.run_id))

    async def ResumeRun(
        self, request: trainer_pb2.ResumeRunRequest, context: Any
    ) -> trainer_pb2.ResumeRunResponse:
        """Queues an ended run again."""
        with store_errors(self._settings.trainer):
            return trainer_pb2.ResumeRunResponse(run=await self._runs.resume(request.run_id))

    async def is_ready(self) -> bool:
        """Whether Redis answers."""
        try:
            return bool(await self._client.ping())
        except redis.RedisError:
            return False

    async def start(self) -> None:
        """Starts the sweep. Redis may come later."""
        self._sweeping = asyncio.create_task(self._sweep.run())

    async def drain(self) -> None:
        """Ends all watches."""
        self._stopping.set()

    async def stop(self) -> None:
        """Stops the sweep and closes all connections."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeping
        self._queue.close()
        await self._client.aclose()


def trainer_service(settings: TrainerApiSettings) -> ServiceDefinition:
    """The trainer's API as a service that `services.common.server` can run."""
    servicer = TrainerServicer(settings)

    def register(server: grpc.aio.Server) -> None:
        """Adds the trainer to a server."""
        trainer_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server)

    return ServiceDefinition(
        full_name=SERVICE_NAME,
        metrics_name="trainer",
        register=register,
        is_ready=servicer.is_ready,
        start=servicer.start,
        drain=servicer.drain,
        stop=servicer.stop,
    )
