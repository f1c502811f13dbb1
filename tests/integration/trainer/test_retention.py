"""What is kept of runs that have ended, and for how long."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs import keys
from services.trainer.jobs.connection import async_client, blocking_client
from services.trainer.jobs.durable import replace_folder
from services.trainer.jobs.errors import RunNotFoundError
from services.trainer.jobs.identifiers import new_run_id
from services.trainer.jobs.retention import Retention
from services.trainer.jobs.states import CANCELLED, PENDING
from services.trainer.jobs.store import RunStore, Transition
from services.trainer.settings import TrainerSettings
from services.trainer.worker.tidying import Tidying
from tests.support.valkey import Valkey

NOW = datetime.now(UTC)


@pytest.fixture
def settings(valkey: Valkey, tmp_path: Path) -> TrainerSettings:
    with valkey.client() as client:
        client.flushall()
    return TrainerSettings(
        redis_url=valkey.url, runs_directory=tmp_path, run_retention_days=30,
        checkpoint_retention_days=5,
    )  # fmt: skip


async def a_run(settings: TrainerSettings, days_ago: float, *, ended: bool) -> str:
    """Created, and perhaps ended, so many days ago."""
    moment = NOW - timedelta(days=days_ago)
    run = trainer_pb2.Run(run_id=new_run_id(moment), request_id=f"r{days_ago}{ended}")
    run.state, run.device_class = PENDING, "cpu"
    client = async_client(settings)
    store = RunStore(client, 100)
    assert await store.create(run, "print") == run.run_id
    if ended:
        finished = {"finished_at": int(moment.timestamp() * 1000)}
        await store.change(run.run_id, lambda _: Transition(CANCELLED, "", finished))
    await client.aclose()
    return run.run_id


async def test_runs_that_ended_long_ago_go_with_all_their_keys(settings: TrainerSettings) -> None:
    old = await a_run(settings, 31, ended=True)
    kept = [await a_run(settings, 29, ended=True), await a_run(settings, 400, ended=False)]
    client = async_client(settings)
    store, retention = RunStore(client, 100), Retention(client, settings)
    assert await retention.prune(NOW) == 1
    assert await retention.prune(NOW) == 0
    with pytest.raises(RunNotFoundError):
        await store.get(old)
    for run_id in kept:
        assert (await store.get(run_id)).run_id == run_id
    assert not [key async for key in client.scan_iter("*") if old.encode() in key]
    assert await client.zrange(keys.ALL_RUNS, 0, -1) == sorted(run.encode() for run in kept)
    assert await client.get(keys.request_key("r31True")) is None
    await client.aclose()


async def test_a_run_that_took_months_is_kept_by_its_end(settings: TrainerSettings) -> None:
    run_id = await a_run(settings, 200, ended=False)
    client = async_client(settings)
    store = RunStore(client, 100)
    await store.change(run_id, lambda _: Transition(CANCELLED, ""))
    assert await Retention(client, settings).prune(NOW) == 0
    assert (await store.get(run_id)).run.state == CANCELLED
    await client.aclose()


@pytest.mark.parametrize(("days", "left"), [(6, {"step-00000002"}), (4, None)])
async def test_the_newest_good_checkpoint_stays(
    settings: TrainerSettings, days: float, left: set[str] | None
) -> None:
    run_id = await a_run(settings, days, ended=True)
    folder = settings.runs_directory / run_id

    def write(place: Path) -> None:
        (place / "weights").write_text("bytes")

    for step in (1, 2, 3):
        replace_folder(folder / "checkpoints" / f"step-{step:08d}", write)
    (folder / "checkpoints" / "step-00000003" / "weights").write_text("broken")
    (folder / "step").mkdir()
    (folder / "adapter").mkdir()
    before = {path.name for path in (folder / "checkpoints").iterdir()}
    tidy(settings)
    assert {path.name for path in (folder / "checkpoints").iterdir()} == (left or before)
    assert (folder / "step").exists() == (left is None)
    assert (folder / "adapter").exists()


async def test_nothing_of_a_run_that_may_go_on_is_touched(settings: TrainerSettings) -> None:
    run_id = await a_run(settings, 400, ended=False)
    folder = settings.runs_directory / run_id
    (folder / "step").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    tidy(settings)
    assert (folder / "step").exists()
    assert (folder / "checkpoints" / "step-00000001").exists()


def test_folders_without_a_record_go_by_age(settings: TrainerSettings) -> None:
    import os

    old, young = (settings.runs_directory / new_run_id() for _ in range(2))
    for folder in (old, young):
        (folder / "adapter").mkdir(parents=True)
    stranger = settings.runs_directory / "datasets"
    stranger.mkdir()
    tidy(settings)
    assert old.exists()
    long_ago = (NOW - timedelta(days=31)).timestamp()
    for path in (*old.iterdir(), old, stranger):
        os.utime(path, (long_ago, long_ago))
    tidy(settings)
    assert (old.exists(), young.exists(), stranger.exists()) == (False, True, True)


async def test_one_bad_folder_does_not_keep_the_others_from_being_tidied(
    settings: TrainerSettings,
) -> None:
    run_ids = [await a_run(settings, days, ended=True) for days in (6, 7, 8)]
    for run_id in run_ids:
        (settings.runs_directory / run_id / "step").mkdir(parents=True)
    # As a power cut may leave it; and a record that cannot be read.
    (settings.runs_directory / run_ids[0] / ".fencing-token").touch()
    client = blocking_client(settings)
    client.hset(keys.run_key(run_ids[1]), "state", "nonsense")
    client.close()
    tidy(settings)
    left = [(settings.runs_directory / run_id / "step").exists() for run_id in run_ids]
    assert left == [False, True, False]


def tidy(settings: TrainerSettings) -> None:
    client = blocking_client(settings)
    with suppress(FileNotFoundError):
        Tidying(client, settings).once()
    client.close()
