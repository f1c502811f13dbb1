"""Two hundred runs queued at once: each is run once, in its turn, and ends once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.states import SUCCEEDED, TERMINAL_STATES
from tests.support.trainer_stack import TrainerStack, wait_until
from tests.support.valkey import Valkey

_RUNS = 200
_PATIENCE_SECONDS = 300


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[TrainerStack]:
    valkey = Valkey().start()
    stack = TrainerStack(tmp_path, valkey)
    stack.start_api()
    yield stack
    stack.close()
    valkey.close()


def test_two_hundred_runs_queued_at_once(crowded: TrainerStack) -> None:
    with ThreadPoolExecutor(16) as clients:
        run_ids = list(clients.map(lambda _: crowded.create("succeed", steps=1), range(_RUNS)))
    assert len(set(run_ids)) == _RUNS
    for _ in range(2):
        crowded.start_worker()
    last = run_ids[-1]

    def all_ended() -> bool:
        return all(crowded.get(run_id).state in TERMINAL_STATES for run_id in reversed(run_ids))

    wait_until(all_ended, "every run to end", crowded.describe, _PATIENCE_SECONDS)
    runs = [crowded.get(run_id) for run_id in run_ids]
    assert {(run.state, run.attempt_count) for run in runs} == {(SUCCEEDED, 1)}
    assert {len(crowded.starts(run_id)) for run_id in run_ids} == {1}
    kinds = [event.WhichOneof("event") for event in crowded.watch(last)]
    assert kinds.count("adapter_saved") == 1
    started = sorted(runs, key=lambda run: run.started_at.ToNanoseconds())
    in_turn = sorted(runs, key=lambda run: run.created_at.ToNanoseconds())
    assert _most_overtaken(started, in_turn) <= 2 * len(crowded.workers)


def _most_overtaken(started: list[trainer_pb2.Run], in_turn: list[trainer_pb2.Run]) -> int:
    """By how many places a run was served out of its turn."""
    places = {run.run_id: place for place, run in enumerate(in_turn)}
    return max(abs(place - places[run.run_id]) for place, run in enumerate(started))
