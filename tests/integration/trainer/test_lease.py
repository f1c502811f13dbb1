"""What the owner of a running run may do: keep its lease, and add events that others read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from elite.trainer.v1 import trainer_pb2
from services.trainer.api.watch import watch_run
from services.trainer.jobs import keys
from services.trainer.jobs.errors import (
    LeasedError,
    LeaseLostError,
    RunNotFoundError,
    StaleRecordError,
)
from services.trainer.jobs.events import EventStream
from services.trainer.jobs.lease import LeaseStatus, RunLease
from services.trainer.jobs.states import (
    CANCELLED,
    PENDING,
    PLANNED,
    RESUMING,
    RUNNING,
    SUCCEEDED,
)
from services.trainer.jobs.store import Transition
from tests.support.run_store import STREAM_LENGTH, a_run, open_store, step
from tests.support.valkey import Valkey


async def test_lease_that_expired_in_an_outage_is_taken_again(valkey: Valkey) -> None:
    async with open_store(valkey) as (store, client):
        run_id = await a_run(store, PLANNED, RUNNING)
        lease = RunLease(client, run_id, "owner-1", 30, STREAM_LENGTH)
        await client.delete(keys.lease_key(run_id))
        assert await lease.renew() is LeaseStatus.HELD
        assert await store.lease_owner(run_id) == "owner-1"


async def test_owner_that_was_replaced_can_do_nothing(valkey: Valkey) -> None:
    async with open_store(valkey) as (store, client):
        run_id = await a_run(store, PLANNED, RUNNING)
        old = RunLease(client, run_id, "owner-1", 30, STREAM_LENGTH)
        await store.change(run_id, lambda _: step(RESUMING))
        await store.change(run_id, lambda _: step(RUNNING, "owner-2"))
        before = await client.xlen(keys.events_key(run_id))

        assert await old.renew() is LeaseStatus.LOST
        with pytest.raises(LeaseLostError):
            await old.append(1, [b"event"], b"")
        finish = Transition(SUCCEEDED, "", lease="mine", owner="owner-1")
        with pytest.raises(LeaseLostError):
            await store.transition(await store.get(run_id), finish)
        free = Transition(RESUMING, "", lease="free")
        with pytest.raises(LeasedError):
            await store.transition(await store.get(run_id), free)
        assert await client.xlen(keys.events_key(run_id)) == before
        assert await store.lease_owner(run_id) == "owner-2"


async def test_batch_sent_twice_is_stored_once(valkey: Valkey) -> None:
    async with open_store(valkey) as (store, client):
        run_id = await a_run(store, PLANNED, RUNNING)
        lease = RunLease(client, run_id, "owner-1", 30, STREAM_LENGTH)
        before = await client.xlen(keys.events_key(run_id))
        await lease.append(1, [b"", b""], b"")
        await lease.append(1, [b"", b""], b"")
        await lease.append(2, [b"", b""], b"")
        assert await client.xlen(keys.events_key(run_id)) == before + 3


async def test_deliveries_count_from_the_last_save(valkey: Valkey) -> None:
    async with open_store(valkey) as (store, client):
        run_id = await a_run(store, PLANNED)
        taken = replace(step(RUNNING), changes={"owner": "owner-1", "delivery_count": 2})
        await store.change(run_id, lambda _: taken)
        lease = RunLease(client, run_id, "owner-1", 30, STREAM_LENGTH)
        await lease.append(1, [b"a step"], b"")
        assert (await store.get(run_id)).delivery_count == 2
        before = await store.get(run_id)
        await lease.append(2, [b"a checkpoint"], b"", saved="10 0 0")
        assert (await store.get(run_id)).delivery_count == 0
        with pytest.raises(StaleRecordError):  # it was decided by the count of before
            await store.transition(before, step(RESUMING))
        other = RunLease(client, run_id, "owner-2", 30, STREAM_LENGTH)
        await store.change(run_id, lambda _: step(RESUMING))
        await store.change(run_id, lambda _: taken)
        with pytest.raises(LeaseLostError):
            await other.append(1, [b"a checkpoint"], b"", saved="20 0 0")
        for again in ("05 0 0", "10 0 0"):  # no further than the attempt before
            await lease.append(3, [b"a checkpoint"], b"", saved=again)
            assert (await store.get(run_id)).delivery_count == 2
        await lease.append(4, [b"a checkpoint"], b"", saved="10 0 7")
        assert (await store.get(run_id)).delivery_count == 0


@pytest.mark.parametrize(
    ("flag", "status"),
    [
        ("pause_requested", LeaseStatus.PAUSE_REQUESTED),
        ("cancel_requested", LeaseStatus.CANCEL_REQUESTED),
    ],
)
async def test_a_wish_reaches_the_owner(valkey: Valkey, flag: Any, status: LeaseStatus) -> None:
    async with open_store(valkey) as (store, client):
        run_id = await a_run(store, PLANNED, RUNNING)
        lease = RunLease(client, run_id, "owner-1", 30, STREAM_LENGTH)
        record = await store.get(run_id)
        await store.request(record, flag, "as asked")
        with pytest.raises(StaleRecordError):
            await store.request(record, flag, "as asked")
        assert await lease.renew() is status


@pytest.mark.parametrize(("timeout_seconds", "block"), [(60.0, 1000), (2.0, 1000), (0.3, 150)])
async def test_a_watch_waits_less_than_redis_may_take(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, timeout_seconds: float, block: int
) -> None:
    blocks: list[int | None] = []
    async with open_store(valkey) as (store, client):
        run_id = await a_run(store, PLANNED)
        read = client.xread

        async def noted(*arguments: Any, block: int | None, **more: Any) -> Any:
            blocks.append(block)
            if len(blocks) == 2:  # the first had what there was
                await store.change(run_id, lambda _: step(CANCELLED))
            return await read(*arguments, block=block, **more)

        monkeypatch.setattr(client, "xread", noted)
        watching = watch_run(client, store, run_id, "", 0.0, timeout_seconds)
        told = [event.state_changed.to async for event in watching]
    assert told == [PENDING, PLANNED, CANCELLED]
    assert set(blocks) == {block, None}


async def test_cursor_of_no_event_reads_from_the_oldest_kept(valkey: Valkey) -> None:
    async with open_store(valkey) as (store, client):
        run_id = await a_run(store, PLANNED)
        stream = EventStream(client, run_id)
        no_event = ("99999999999999999999-0", "0-99999999999999999999", "99999999999999-5")
        for cursor in ("", *no_event):
            assert await stream.usable_cursor(cursor) == "0-0"
        events = await stream.read("0-0", 0)
        assert await stream.usable_cursor(events[0].cursor) == events[0].cursor
        assert await stream.read(await stream.usable_cursor("1-1"), 0) == events
        assert await stream.read(events[0].cursor, 0) == events[1:]
        assert await stream.read(events[-1].cursor, 0.05) == []


async def test_stream_is_bounded(valkey: Valkey) -> None:
    async with open_store(valkey) as (store, client):
        run_id = await a_run(store, PLANNED, RUNNING)
        lease = RunLease(client, run_id, "owner-1", 30, event_stream_length=100)
        for first in range(1, 3001, 500):
            await lease.append(first, [b""] * 500, b"")
        # "About": Redis trims whole nodes of its radix tree, 100 entries each.
        assert await client.xlen(keys.events_key(run_id)) <= 300


async def test_a_run_that_redis_has_lost_is_recorded_again_as_it_was(valkey: Valkey) -> None:
    async with open_store(valkey) as (store, client):
        await client.flushall()
        run_id = await a_run(store, PLANNED, RUNNING, request_id="once", device_class="cpu")
        lease = RunLease(client, run_id, "owner-1", 30, STREAM_LENGTH)
        before = await store.get(run_id)
        await client.flushall()
        assert await lease.renew() is LeaseStatus.GONE
        with pytest.raises(RunNotFoundError):
            await lease.append(1, [b""], b"")

        await store.restore(before, trainer_pb2.RunProgress(completed_steps=7), 30)
        again = await store.get(run_id)
        assert again.run.progress.completed_steps == 7
        assert "recorded again" in again.run.status_detail
        for record in (before, again):
            record.run.ClearField("progress")
            record.run.ClearField("status_detail")
        assert replace(again, version=0) == replace(before, version=0)
        assert again.version > before.version
        assert await store.lease_owner(run_id) == "owner-1"
        assert await store.page("", [RUNNING], 9) == await store.get_many([run_id])
        assert await store.find_request("once") is not None
        assert await client.smembers(keys.DEVICE_CLASSES) == {b"cpu"}
        assert await lease.renew() is LeaseStatus.HELD


async def test_a_record_that_is_there_is_not_recorded_again(valkey: Valkey) -> None:
    async with open_store(valkey) as (store, client):
        run_id = await a_run(store, PLANNED, RUNNING)
        mine = await store.get(run_id)
        await store.change(run_id, lambda _: step(RESUMING))
        await store.change(run_id, lambda _: step(RUNNING, "owner-2"))
        before = await client.hgetall(keys.run_key(run_id))
        await store.restore(mine, trainer_pb2.RunProgress(), 30)
        assert await client.hgetall(keys.run_key(run_id)) == before
        assert await store.lease_owner(run_id) == "owner-2"
