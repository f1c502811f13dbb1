"""When a checkpoint is due: by steps, by time, and at the end."""

from __future__ import annotations

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
from services.trainer.jobs.fence import Fence

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
