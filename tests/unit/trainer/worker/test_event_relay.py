"""The buffer between an engine and Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from redis.exceptions import ConnectionError

from elite.trainer.v1 import trainer_pb2
from services.trainer.worker.event_relay import EventRelay


class FlakyStore:
    """Takes batches as Redis does: by number, each once; can lose its answer."""

    def __init__(self) -> None:
        self.events: list[trainer_pb2.RunEvent] = []
        self.is_up = True
        self.loses_answers = 0
        self.saved: list[str] = []
        self.has_two = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()

    async def append(
        self, first_number: int, events: Sequence[bytes], _progress: bytes, *, saved: str
    ) -> None:
        if not self.is_up:
            raise ConnectionError("down")
        self.saved.append(saved)
        for number, event in enumerate(events, first_number):
            if number > len(self.events):
                assert number == len(self.events) + 1
                self.events.append(trainer_pb2.RunEvent.FromString(event))
        if len(self.events) >= 2:
            self.has_two.set()
        await self.answers.wait()
        if self.loses_answers:
            self.loses_answers -= 1
            raise ConnectionError("the answer was lost")


def step(number: int) -> trainer_pb2.RunEvent:
    return trainer_pb2.RunEvent(step_completed=trainer_pb2.StepCompleted(step=number))


def checkpoint(number: int) -> trainer_pb2.RunEvent:
    return trainer_pb2.RunEvent(checkpoint_saved=trainer_pb2.CheckpointSaved(step=number))


def relay_to(store: FlakyStore, limit: int = 100) -> EventRelay:
    return EventRelay(store, limit)  # type: ignore[arg-type]


PROGRESS = trainer_pb2.RunProgress(completed_steps=1)


async def test_lost_answer_stores_nothing_twice() -> None:
    store = FlakyStore()
    relay = relay_to(store)
    store.loses_answers = 1
    for number in range(3):
        relay.add(step(number), PROGRESS)
    with pytest.raises(ConnectionError):
        await relay.flush()
    relay.add(step(3), PROGRESS)
    await relay.flush()
    assert store.events == [step(number) for number in range(4)]


async def test_batches_say_how_far_what_they_saved_goes() -> None:
    store = FlakyStore()
    relay = relay_to(store)
    inside = trainer_pb2.CheckpointSaved(step=9, windows_done=2, stages_done=70)
    batches = (
        [step(1)], [step(2), checkpoint(2), step(3)], [checkpoint(9)],
        [trainer_pb2.RunEvent(checkpoint_saved=inside)], [checkpoint(10)], [step(4)],
    )  # fmt: skip
    for batch in batches:
        for event in batch:
            relay.add(event, PROGRESS)
        await relay.flush()
    assert store.saved[0] == store.saved[-1] == ""
    assert store.saved[:-1] == sorted(set(store.saved))


async def test_outage_is_waited_out() -> None:
    store = FlakyStore()
    relay = relay_to(store)
    running = asyncio.create_task(relay.run())
    store.is_up = False
    relay.add(step(1), PROGRESS)
    await asyncio.sleep(0.05)
    assert store.events == []
    store.is_up = True
    relay.add(step(2), PROGRESS)
    await asyncio.wait_for(store.has_two.wait(), 10)
    running.cancel()
    assert store.events == [step(1), step(2)]


async def test_two_that_flush_at_once_lose_and_miscount_nothing() -> None:
    """As at a run's end: the task still sends while the last events are flushed."""
    store = FlakyStore()
    relay = relay_to(store)
    store.answers.clear()
    relay.add(step(1), PROGRESS)
    running = asyncio.create_task(relay.run())
    await asyncio.sleep(0)
    relay.add(step(2), PROGRESS)
    flushing = asyncio.create_task(relay.flush())
    await asyncio.sleep(0)
    store.answers.set()
    await flushing
    relay.add(step(3), PROGRESS)
    await relay.flush()
    running.cancel()
    assert store.events == [step(number) for number in (1, 2, 3)]


async def test_full_buffer_drops_the_oldest_steps_and_keeps_the_rest() -> None:
    store = FlakyStore()
    relay = relay_to(store, limit=10)
    relay.add(checkpoint(0), PROGRESS)
    for number in range(20):
        relay.add(step(number), PROGRESS)
    relay.add(checkpoint(20), PROGRESS)
    await relay.flush()
    assert relay.dropped == 12
    assert store.events == [checkpoint(0), *(step(n) for n in range(12, 20)), checkpoint(20)]


async def test_dropping_does_not_disturb_a_batch_under_way() -> None:
    store = FlakyStore()
    relay = relay_to(store, limit=5)
    store.loses_answers = 1
    for number in range(5):
        relay.add(step(number), PROGRESS)
    with pytest.raises(ConnectionError):
        await relay.flush()
    for number in range(5, 12):
        relay.add(step(number), PROGRESS)
    await relay.flush()
    assert store.events == [step(n) for n in (*range(5), *range(7, 12))]
