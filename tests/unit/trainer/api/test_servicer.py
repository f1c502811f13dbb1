"""How a watch ends. Everything else about the servicer is tested against a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from elite.trainer.v1 import trainer_pb2
from services.common.errors import ErrorReason, ServiceError
from services.trainer.api import servicer as module
from services.trainer.api.servicer import TrainerServicer
from services.trainer.api.settings import TrainerApiSettings


class SlowContext:
    """A caller who takes a message only when told to."""

    def __init__(self) -> None:
        self.is_writing = asyncio.Event()
        self.may_take = asyncio.Event()
        self.taken: list[trainer_pb2.WatchRunResponse] = []

    async def write(self, response: trainer_pb2.WatchRunResponse) -> None:
        """Returns once the caller has it."""
        self.is_writing.set()
        await self.may_take.wait()
        self.taken.append(response)


async def _endless_events(*_: object) -> AsyncGenerator[trainer_pb2.RunEvent]:
    while True:
        yield trainer_pb2.RunEvent(cursor="1-0")


async def test_a_stopping_watch_ends_after_the_write_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """gRPC takes no status while a write is under way, and the call would hang for the grace."""
    monkeypatch.setattr(module, "watch_run", _endless_events)
    servicer, context = TrainerServicer(TrainerApiSettings()), SlowContext()
    watch = asyncio.create_task(servicer.WatchRun(trainer_pb2.WatchRunRequest(), context))
    await context.is_writing.wait()
    await servicer.drain()
    await asyncio.sleep(0.05)
    assert not watch.done()
    context.may_take.set()
    with pytest.raises(ServiceError) as stopped:
        await watch
    assert stopped.value.reason == ErrorReason.SERVER_STOPPING
    assert len(context.taken) == 1
    await servicer.stop()
