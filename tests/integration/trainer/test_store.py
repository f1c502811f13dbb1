"""The run store against a real server: every change is atomic, and only legal ones happen."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs import keys
from services.trainer.jobs.errors import (
    IllegalTransitionError,
    RunNotFoundError,
    StaleRecordError,
    UnreadableRecordError,
)
from services.trainer.jobs.events import EventStream
from services.trainer.jobs.records import RunRecord
from services.trainer.jobs.states import (
    ALL_STATES,
    CANCELLED,
    FAILED,
    PENDING,
    PLANNED,
    RESUMING,
    RUNNING,
    SUCCEEDED,
    WAITING_STATES,
    State,
    may_become,
)
from services.trainer.jobs.store import RunStore, Transition
from services.trainer.settings import TrainerSettings
from services.trainer.worker.run_directory import RunDirectory
from services.trainer.worker.settings import TrainerWorkerSettings
from services.trainer.worker.take_up import take_up
from tests.support.run_specs import a_plan
from tests.support.run_store import a_run, open_store, step
from tests.support.valkey import Valkey


async def indexed_in(client: Any, run_id: str) -> list[State]:
    return [
        state
        for state in ALL_STATES
        if await client.zscore(keys.state_key(state), run_id) is not None
    ]


@settings(max_examples=60, deadline=None)
@given(targets=st.lists(st.sampled_from(ALL_STATES), max_size=12))
def test_any_sequence_of_steps_keeps_record_indexes_lease_and_events_together(
    valkey: Valkey, targets: list[State]
) -> None:
    async def scenario() -> None:
        async with open_store(valkey) as (store, client):
            run_id = await a_run(store)
            expected, path = PENDING, [PENDING]
            for target in targets:
                record = await store.get(run_id)
                if may_become(expected, target):
                    await store.transition(record, step(target))
                    expected = target
                    path.append(target)
                else:
                    with pytest.raises(IllegalTransitionError, match=run_id):
                        await store.transition(record, step(target))
                await check(store, client, run_id, expected)
            events = await EventStream(client, run_id).read("0-0", 0)
            assert [event.state_changed.to for event in events] == path
            olds = [getattr(event.state_changed, "from") for event in events]
            assert olds == [trainer_pb2.RUN_STATE_UNSPECIFIED, *path[:-1]]

    async def check(store: RunStore, client: Any, run_id: str, expected: State) -> None:
        record = await store.get(run_id)
        assert record.run.state == expected
        assert record.run.spec.plan == a_plan()
        assert await indexed_in(client, run_id) == [expected]
        waits = await client.zscore(keys.WAITING, run_id) is not None
        assert waits == (expected in WAITING_STATES)
        assert bool(await store.lease_owner(run_id)) == (expected == RUNNING)

    asyncio.run(scenario())


async def test_unknown_run(valkey: Valkey) -> None:
    async with open_store(valkey) as (store, _):
        for read in (store.get, store.state):
            with pytest.raises(RunNotFoundError, match="run_id: there is no run 'nobody'"):
                await read("nobody")


async def test_a_step_on_an_old_record_changes_nothing(valkey: Valkey) -> None:
    async with open_store(valkey) as (store, client):
        run_id = await a_run(store, PLANNED)
        old = await store.get(run_id)
        await store.transition(old, step(CANCELLED))
        with pytest.raises(StaleRecordError):
            await store.transition(old, step(RUNNING))
        # The same state again, by way of others: still not the record that was read.
        await store.change(run_id, lambda _: step(RESUMING))
        await store.change(run_id, lambda _: step(CANCELLED))
        with pytest.raises(StaleRecordError):
            await store.transition(replace(old, run=(await store.get(run_id)).run), step(RESUMING))
        assert await indexed_in(client, run_id) == [CANCELLED]


async def test_two_deciders_at_once_both_get_a_say(valkey: Valkey) -> None:
    """`change` decides again when somebody was faster: cancel wins over nothing, once."""
    async with open_store(valkey) as (store, client):
        run_id = await a_run(store, PLANNED)

        def cancel(record: RunRecord) -> Transition | None:
            return step(CANCELLED) if record.run.state in WAITING_STATES else None

        records = await asyncio.gather(*(store.change(run_id, cancel) for _ in range(10)))
        assert {record.run.state for record in records} == {CANCELLED}
        assert len(await EventStream(client, run_id).read("0-0", 0)) == 3


async def test_creation_is_idempotent_under_concurrency(valkey: Valkey) -> None:
    async with open_store(valkey) as (store, _):
        ids = await asyncio.gather(*(a_run(store, request_id="same") for _ in range(20)))
        assert len(set(ids)) == 1
        assert (await store.find_request("same")).run_id == ids[0]
        others = await asyncio.gather(*(a_run(store) for _ in range(5)))
        assert len({*ids, *others}) == 6


async def test_a_run_id_is_never_given_twice(valkey: Valkey) -> None:
    async with open_store(valkey) as (store, _):
        run_id = await a_run(store, PLANNED)
        await asyncio.sleep(0.002)
        assert await store.create(trainer_pb2.Run(run_id=run_id, state=PENDING), "other") is None
        assert (await store.get(run_id)).fingerprint == "fingerprint"


async def test_pages_are_newest_first_and_complete(valkey: Valkey) -> None:
    async with open_store(valkey) as (store, client):
        await client.flushall()
        planned, failed = [], []
        for _ in range(4):
            planned.append(await a_run(store, PLANNED))
            await asyncio.sleep(0.002)
            failed.append(await a_run(store, PLANNED, RUNNING, FAILED))
            await asyncio.sleep(0.002)
        everything = sorted([*planned, *failed], reverse=True)

        async def all_pages(states: list[State]) -> list[str]:
            seen: list[str] = []
            while page := await store.page(seen[-1] if seen else "", states, 3):
                seen += [record.run_id for record in page]
            return seen

        assert await all_pages([]) == everything
        assert await all_pages([PLANNED, FAILED]) == everything
        assert await all_pages([FAILED]) == failed[::-1]
        assert await all_pages([SUCCEEDED]) == []


def _worker_settings(valkey: Valkey) -> TrainerWorkerSettings:
    return TrainerWorkerSettings(trainer=TrainerSettings(redis_url=valkey.socket_url))


async def test_many_workers_race_for_one_run_and_one_gets_it(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(valkey) as (store, _):
        run_id = await a_run(store, PLANNED)
        owners = itertools.count()
        monkeypatch.setattr(
            "services.trainer.worker.take_up.lease_owner", lambda: f"other:{next(owners)}"
        )
        contenders = (take_up(store, run_id, _worker_settings(valkey)) for _ in range(20))
        records = [record for record in await asyncio.gather(*contenders) if record is not None]
        assert len(records) == 1
        assert await store.lease_owner(run_id) == records[0].owner
        assert records[0].run.attempt_count == 1


async def test_two_workers_race_a_thousand_times_and_tokens_only_grow(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = itertools.count()
    monkeypatch.setattr(
        "services.trainer.worker.take_up.lease_owner", lambda: f"other:{next(owners)}"
    )
    worker_settings = _worker_settings(valkey)
    async with open_store(valkey) as (store, _), open_store(valkey) as (other, _):
        run_id = await a_run(store, PLANNED)
        for number in range(1, 1001):
            contenders = (take_up(one, run_id, worker_settings) for one in (store, other))
            records = [one for one in await asyncio.gather(*contenders) if one is not None]
            assert [one.run.attempt_count for one in records] == [number]
            # As when the worker drains: the run waits for the next.
            drained = Transition(RESUMING, "drained", {"delivery_count": 0}, owner=records[0].owner)
            await store.change(run_id, lambda _, step=drained: step)


@pytest.mark.parametrize(
    ("token", "attempt"), [("7", 8), ("1", 3), ("seven", 3), ("99999999999", 3), (None, 3)]
)
async def test_an_attempt_is_above_those_a_restored_store_knows_nothing_of(
    valkey: Valkey, tmp_path: Path, token: str | None, attempt: int
) -> None:
    worker_settings = _worker_settings(valkey)
    worker_settings.trainer.runs_directory = tmp_path
    async with open_store(valkey) as (store, client):
        run_id = await a_run(store, PLANNED)
        await client.hset(keys.run_key(run_id), "attempt_count", 2)
        if token:
            (tmp_path / run_id).mkdir()
            (tmp_path / run_id / ".fencing-token").write_text(token)
        record = await take_up(store, run_id, worker_settings)
        assert record is not None
        assert record.run.attempt_count == attempt
        RunDirectory(tmp_path, run_id).prepare(record.run)


async def test_message_that_arrives_before_the_api_has_noted_it(valkey: Valkey) -> None:
    async with open_store(valkey) as (store, _):
        run_id = await a_run(store)
        record = await take_up(store, run_id, _worker_settings(valkey))
        assert record is not None
        assert record.run.state == RUNNING
        # The API notes it late: nothing happens.
        noted = await store.change(
            run_id, lambda r: step(PLANNED) if r.run.state == PENDING else None
        )
        assert noted.run.state == RUNNING


@pytest.mark.parametrize("damage", [{"state": "teleporting"}, {"spec": b"\xff"}, {"version": "x"}])
async def test_a_record_that_cannot_be_read_is_listed_and_hides_no_other(
    valkey: Valkey, damage: dict[str, Any]
) -> None:
    async with open_store(valkey) as (store, client):
        await client.flushall()
        first, damaged, last = [await a_run(store, PLANNED, device_class="cpu") for _ in range(3)]
        await client.hset(keys.run_key(damaged), mapping=damage)
        with pytest.raises(
            UnreadableRecordError, match=f"{damaged} cannot be read by this version"
        ):
            await store.get(damaged)
        records = await store.get_many([first, damaged, last])
        found = {record.run_id: record.run for record in records}
        assert list(found) == [first, damaged, last]
        assert found[first].state == found[last].state == PLANNED
        assert found[damaged].state == trainer_pb2.RUN_STATE_UNSPECIFIED
        assert "cannot be read" in found[damaged].status_detail
        # Nor does it stop the queue: its message, or another's, takes up those behind it.
        worker_settings = _worker_settings(valkey).model_copy(update={"device_classes": ("cpu",)})
        for message, taken in ((damaged, first), (last, last)):
            record = await take_up(store, message, worker_settings)
            assert record is not None
            assert record.run_id == taken
        assert await take_up(store, damaged, worker_settings) is None
