"""How an attempt's end is recorded, against a real store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pytest
from prometheus_client import CollectorRegistry
from redis.exceptions import ConnectionError

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.connection import async_client
from services.trainer.jobs.errors import RunNotFoundError
from services.trainer.jobs.fence import Fence
from services.trainer.jobs.identifiers import new_run_id
from services.trainer.jobs.records import RunRecord
from services.trainer.jobs.states import CANCELLED, PAUSED, PENDING, PLANNED, RESUMING, State
from services.trainer.jobs.store import Decision, RunStore, Transition
from services.trainer.settings import TrainerSettings
from services.trainer.worker.metrics import WorkerMetrics
from services.trainer.worker.settings import TrainerWorkerSettings
from services.trainer.worker.supervisor import Attempt, Verdict
from services.trainer.worker.take_up import take_up
from tests.support.run_specs import a_spec
from tests.support.trainer_stack import wait_until
from tests.support.valkey import Valkey

Flag = Literal["cancel_requested", "pause_requested"]

# An engine that runs until it is let go, and then ends as one that has saved what it had.
_ENGINE = "touch {0}/started; while [ ! -e {0}/go ]; do sleep 0.05; done; exit 75"


class ForgetfulStore(RunStore):
    """Loses the answer to the first change that it is told to."""

    loses_answer = False

    async def change(self, run_id: str, decide: Decision) -> RunRecord:
        record = await super().change(run_id, decide)
        if self.loses_answer:
            self.loses_answer = False
            raise ConnectionError("the answer was lost")
        return record


async def _ended_with(
    folder: Path,
    valkey: Valkey,
    wishes: Iterable[Flag],
    *,
    loses_answer: bool = False,
    loses_everything: bool = False,
    superseded: bool = False,
) -> tuple[Verdict, trainer_pb2.Run]:
    """Takes a run up, asks for all of it while the worker does not look, and lets it end."""
    shared = TrainerSettings(
        redis_url=valkey.socket_url, runs_directory=folder / "runs", data_roots=(folder,),
        lease_seconds=200,
    )  # fmt: skip
    engine = ("sh", "-c", _ENGINE.format(folder))
    settings = TrainerWorkerSettings(trainer=shared, engine_command=engine, poll_seconds=60)
    client = async_client(shared)
    store = ForgetfulStore(client, 100)
    await client.flushall()
    run_id = await _planned(store, folder)
    record = await take_up(store, run_id, settings)
    assert record is not None
    assert record.run_id == run_id
    attempt = Attempt(record, settings, client, store, WorkerMetrics(CollectorRegistry()))
    running = asyncio.create_task(attempt.run())
    await asyncio.to_thread(wait_until, (folder / "started").exists, "an engine")
    for flag in wishes:
        await store.request(await store.get(run_id), flag, "as asked")
    store.loses_answer = loses_answer
    if loses_everything:
        await client.flushall()
    if superseded:
        Fence(shared.runs_directory / run_id, record.run.attempt_count + 1).take()
    (folder / "go").touch()
    verdict = await running
    run = (await store.get(run_id)).run
    await client.aclose()
    return verdict, run


async def _planned(store: RunStore, folder: Path) -> str:
    run = trainer_pb2.Run(run_id=new_run_id(), state=PENDING, spec=a_spec(folder))
    run.device_class = "cpu"
    assert await store.create(run, "fingerprint") == run.run_id
    await store.change(run.run_id, lambda _: Transition(PLANNED, ""))
    return run.run_id


@pytest.mark.parametrize("loses_answer", [False, True])
@pytest.mark.parametrize(
    ("wishes", "verdict", "state"),
    [
        ((), Verdict.REQUEUE, RESUMING),
        (("pause_requested",), Verdict.DONE, PAUSED),
        (("cancel_requested",), Verdict.DONE, CANCELLED),
        (("pause_requested", "cancel_requested"), Verdict.DONE, CANCELLED),
    ],
)
async def test_what_was_asked_for_until_the_end_is_recorded_counts(
    tmp_path: Path, valkey: Valkey, wishes: Any, verdict: Verdict, state: State, loses_answer: bool
) -> None:
    ended, run = await _ended_with(tmp_path, valkey, wishes, loses_answer=loses_answer)
    assert (ended, run.state) == (verdict, state)
    assert run.pause_requested == (state == CANCELLED and "pause_requested" in wishes)


async def test_an_end_that_redis_has_lost_the_run_of_is_recorded(
    tmp_path: Path, valkey: Valkey
) -> None:
    ended, run = await _ended_with(tmp_path, valkey, (), loses_everything=True)
    assert (ended, run.state) == (Verdict.REQUEUE, RESUMING)
    assert (run.attempt_count, run.device_class) == (1, "cpu")
    assert run.spec == a_spec(tmp_path)


async def test_a_lost_run_whose_folder_another_attempt_has_is_not_recorded(
    tmp_path: Path, valkey: Valkey
) -> None:
    with pytest.raises(RunNotFoundError):
        await _ended_with(tmp_path, valkey, (), loses_everything=True, superseded=True)
