"""The sweep against a real store: one bad id or record keeps no other run waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError, ReadOnlyError

from elite.trainer.v1 import trainer_pb2
from services.trainer.api.runs import Runs
from services.trainer.api.settings import TrainerApiSettings
from services.trainer.api.sweep import Sweep
from services.trainer.jobs import keys
from services.trainer.jobs.connection import async_client
from services.trainer.jobs.fleet import Fleet
from services.trainer.jobs.identifiers import new_run_id
from services.trainer.jobs.retention import Retention
from services.trainer.jobs.states import PENDING, PLANNED, RESUMING, RUNNING
from services.trainer.jobs.store import RunStore, Transition
from services.trainer.settings import TrainerSettings
from tests.support.run_specs import a_spec
from tests.support.valkey import Valkey

NOBODY = "20260101-000000-000bbbb"


class RecordingQueue:
    """Takes every message."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def send(self, run_id: str, _device_class: str) -> None:
        self.sent.append(run_id)


class Parts:
    """A sweep and what it works on."""

    def __init__(self, valkey: Valkey) -> None:
        settings = TrainerSettings(redis_url=valkey.socket_url)
        self.client = async_client(settings)
        self.store = RunStore(self.client, 100)
        self.queue = RecordingQueue()
        fleet = Fleet(self.client, settings)
        runs = Runs(settings, self.store, self.queue, fleet)  # type: ignore[arg-type]
        retention = Retention(self.client, settings)
        self.sweep = Sweep(TrainerApiSettings(trainer=settings), self.store, fleet, runs, retention)

    async def abandoned_run(self) -> str:
        """A running run whose lease is gone."""
        run = trainer_pb2.Run(run_id=new_run_id(), state=PENDING, spec=a_spec(Path("/data")))
        run.device_class = "cpu"
        assert await self.store.create(run, "fingerprint") == run.run_id
        for state in (PLANNED, RUNNING):
            step = Transition(state, "", owner="gone", lease_seconds=30)
            await self.store.change(run.run_id, lambda _, step=step: step)
        await self.client.delete(keys.lease_key(run.run_id))
        return run.run_id


@pytest.fixture
async def parts(valkey: Valkey) -> AsyncIterator[Parts]:
    with valkey.client() as client:
        client.flushall()
    made = Parts(valkey)
    yield made
    await made.client.aclose()


async def test_an_id_without_a_record_is_dropped_and_the_rest_is_cared_for(parts: Parts) -> None:
    run_id = await parts.abandoned_run()
    for key in (keys.UNSENT, keys.WAITING, keys.ready_key("cpu")):
        await parts.client.zadd(key, {NOBODY: 1})
    for _ in range(2):
        await parts.sweep.once()
    assert (await parts.store.get(run_id)).run.state == RESUMING
    assert parts.queue.sent == [run_id]
    for key in (keys.UNSENT, keys.WAITING, keys.ready_key("cpu")):
        assert await parts.client.zscore(key, NOBODY) is None
    assert await parts.store.next_ready(["cpu"]) == run_id


async def test_a_damaged_record_does_not_keep_others_from_being_freed_or_queued(
    parts: Parts,
) -> None:
    first, damaged, last = [await parts.abandoned_run() for _ in range(3)]
    await parts.client.hset(keys.run_key(damaged), "version", "nonsense")
    await parts.client.zadd(keys.UNSENT, {damaged: 1})
    for _ in range(2):
        await parts.sweep.once()
    assert set(parts.queue.sent) == {first, last}
    for run_id in (first, last):
        assert (await parts.store.get(run_id)).run.state == RESUMING


@pytest.mark.parametrize("is_overdue", [False, True])
async def test_a_look_while_redis_can_only_be_read_does_not_count(
    parts: Parts, is_overdue: bool
) -> None:
    """Leases cannot be renewed then: the owner needs a moment after the outage as well."""
    run_id = await parts.abandoned_run()
    await parts.sweep.once()
    if is_overdue:  # the look ends before it comes to leases
        await parts.client.zadd(keys.UNSENT, {NOBODY: 1})
    await parts.client.replicaof("127.0.0.1", "1")
    try:
        for _ in range(3):
            with pytest.raises(ReadOnlyError):
                await parts.sweep.once()
    finally:
        await parts.client.replicaof("NO", "ONE")
    await parts.sweep.once()
    assert (await parts.store.get(run_id)).run.state == RUNNING
    await parts.sweep.once()
    assert (await parts.store.get(run_id)).run.state == RESUMING


async def test_an_outage_ends_the_look(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    await parts.client.zadd(keys.UNSENT, {NOBODY: 1})

    async def is_away(*_: object) -> None:
        raise ConnectionError("redis is away")

    monkeypatch.setattr(parts.store, "get", is_away)
    with pytest.raises(ConnectionError):
        await parts.sweep.once()
