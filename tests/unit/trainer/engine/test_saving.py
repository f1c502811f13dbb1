"""When a checkpoint is due: by steps, by time, and at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from services.trainer.engine.checkpoint import CheckpointStore, Identity, Position
from services.trainer.engine.events import EventEmitter
from services.trainer.engine.saving import RunSaver, make_step_journal, step_identity
from services.trainer.engine.specification import Specification, Training
from services.trainer.engine.streaming.step_journal import StepJournal
from services.trainer.jobs.fence import Fence, SupersededError

IDENTITY = Identity("data", "weights", 1, 4, 8.0, ("q_proj",), "OPTIMIZER_KIND_ADAMW", 0)


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def a_specification(executor: Any = planner_pb2.EXECUTOR_STREAMING, **training: Any) -> Any:
    plan = planner_pb2.Plan(execution=planner_pb2.Execution(executor=executor))
    return Specification(plan, trainer_pb2.DataSource(), "", Training(steps=10, **training))


def a_saver(clock: Clock, **training: Any) -> RunSaver:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)
    return RunSaver(
        a_specification(**training), CheckpointStore(Fence(Path("unused"), 0)), EventEmitter(1),
        None, optimizer, IDENTITY, Position(0, 1.0), clock=clock,
    )  # fmt: skip


def due(saver: RunSaver) -> list[int]:
    return [done for done in range(1, 11) if saver.is_due(done)]


def test_by_steps_and_at_the_end() -> None:
    assert due(a_saver(Clock())) == [10]
    assert due(a_saver(Clock(), checkpoint_every_steps=4)) == [4, 8, 10]


@pytest.mark.parametrize(("every", "expected"), [(600, True), (601, False), (0, False)])
def test_by_time(every: int, expected: bool) -> None:
    clock = Clock()
    saver = a_saver(clock, checkpoint_every_seconds=every)
    clock.seconds = 600
    assert saver.is_due(1) is expected


def test_a_step_in_the_middle_begins_with_one_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []

    def save(_: Any, *arguments: Any) -> tuple[Path, int]:
        saved.append(arguments[2].step)
        return Path("unused"), 1

    monkeypatch.setattr(CheckpointStore, "save", save)
    saver = a_saver(Clock())
    for step in (0, 0, 1, 1):
        saver.position = Position(step, 1.0)
        saver.save_once()
    assert saved == [0, 1]


def test_only_steps_of_the_streaming_executor_are_saved_in_the_middle(tmp_path: Path) -> None:
    assert make_step_journal(a_specification(), Fence(tmp_path, 0), IDENTITY) is not None
    resident = a_specification(planner_pb2.EXECUTOR_RESIDENT)
    assert make_step_journal(resident, Fence(tmp_path, 0), IDENTITY) is None
    never = a_specification(checkpoint_every_seconds=0)
    assert make_step_journal(never, Fence(tmp_path, 0), IDENTITY) is None


def test_a_step_belongs_to_its_plan() -> None:
    plan = a_specification().plan
    before = step_identity(plan, IDENTITY)
    assert before == step_identity(plan, IDENTITY)
    plan.execution.streaming.chunk_tokens = 512
    assert before != step_identity(plan, IDENTITY)


def a_journal(folder: Path, token: int = 0, seed: int = 1) -> StepJournal:
    identity = replace(IDENTITY, seed=seed)
    journal = make_step_journal(a_specification(), Fence(folder, token), identity)
    assert journal is not None
    return journal


def leave_a_state(journal: StepJournal, step: int, windows: int, stages: int) -> None:
    journal.folder.mkdir()
    journal.begin_step(step, 1.0, [])
    journal.begin_window([0.5] * windows)
    assert journal._save(stages, 0.0) is not None


def folders(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir() if path.is_dir())


@pytest.mark.parametrize(
    ("states", "furthest"),
    [
        ([(5, 0, 3), (5, 0, 4), (5, 0, 2)], 1),
        ([(5, 1, 0), (5, 0, 9)], 0),
        ([(5, 3, 7), (4, 9, 9), (6, 0, 1)], 2),
    ],
)
def test_the_step_that_is_furthest_goes_on(
    states: list[tuple[int, int, int]], furthest: int, tmp_path: Path
) -> None:
    attempts = [a_journal(tmp_path) for _ in states]  # all alive, in folders of their own
    for attempt, state in zip(attempts, states, strict=True):
        leave_a_state(attempt, *state)
    folder = attempts[furthest].folder
    assert len(folders(tmp_path)) == len(states)
    del attempts, attempt
    journal = a_journal(tmp_path)
    assert journal.folder == folder
    assert journal.found == states[furthest]
    assert folders(tmp_path) == [folder.name]
    journal.drop()
    assert folders(tmp_path) == []


def test_a_step_of_another_run_never_goes_on(tmp_path: Path) -> None:
    attempts = [a_journal(tmp_path), a_journal(tmp_path, seed=2)]
    leave_a_state(attempts[0], 5, 0, 3)
    leave_a_state(attempts[1], 6, 0, 3)
    del attempts
    journal = a_journal(tmp_path)
    assert (journal.folder.name, journal.found) == ("step", (5, 0, 3))
    assert folders(tmp_path) == ["step"]


def test_what_a_living_attempt_has_is_left_to_it(tmp_path: Path) -> None:
    alive, dead = a_journal(tmp_path), a_journal(tmp_path)
    leave_a_state(alive, 6, 0, 3)
    leave_a_state(dead, 5, 0, 3)
    del dead
    journal = a_journal(tmp_path)
    assert (journal.folder.name, journal.found) == ("step-1", (5, 0, 3))
    assert folders(tmp_path) == ["step", "step-1"]
    journal.drop()
    assert folders(tmp_path) == ["step"]
    del alive
    journal.drop()  # it has died since
    assert folders(tmp_path) == []


def test_only_folders_of_steps_are_dropped(tmp_path: Path) -> None:
    others = ["checkpoints", "step-notes", "steps"]
    for name in [*others, "step", "step-7"]:
        (tmp_path / name).mkdir()
    journal = a_journal(tmp_path)
    journal.drop()
    assert folders(tmp_path) == others


def test_an_attempt_that_was_followed_drops_only_its_own(tmp_path: Path) -> None:
    older, newer = a_journal(tmp_path, token=1), a_journal(tmp_path, token=2)
    for journal in (older, newer):
        leave_a_state(journal, 5, 0, 3)
    Fence(tmp_path, 2).take()
    del journal, newer  # the newer attempt has died: another goes on with its step
    older.drop()
    assert folders(tmp_path) == ["step-1"]
    with pytest.raises(SupersededError):
        a_journal(tmp_path, token=1)
    assert a_journal(tmp_path, token=3).found == (5, 0, 3)
