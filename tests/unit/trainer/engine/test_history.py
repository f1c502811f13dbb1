"""What was told of steps can be told again."""

from __future__ import annotations

from pathlib import Path

from elite.trainer.v1 import trainer_pb2
from services.trainer.engine.history import History


def an_event(seconds: int, **event: object) -> trainer_pb2.RunEvent:
    made = trainer_pb2.RunEvent(**event)
    made.time.FromSeconds(seconds)
    return made


def a_step(step: int, seconds: int = 0) -> trainer_pb2.RunEvent:
    completed = trainer_pb2.StepCompleted(step=step, loss=1.0 / step)
    return an_event(seconds or step, step_completed=completed)


def test_steps_that_nobody_heard_of_come_once_and_in_order(tmp_path: Path) -> None:
    history = History(tmp_path)
    for step in (1, 2, 3, 4, 3, 4, 5):  # 3 and 4 ran again after a resume
        history.add(a_step(step))
    assert [e.step_completed.step for e in history.between(2, 4)] == [3, 4]
    assert [e.step_completed.step for e in History(tmp_path).between(0, 5)] == [1, 2, 3, 4, 5]
    assert history.between(5, 5) == []


def test_the_first_evaluation_comes_when_no_step_was_told(tmp_path: Path) -> None:
    history = History(tmp_path)
    first = trainer_pb2.Evaluated(before_training=True, loss=2.0)
    history.add(an_event(0, evaluated=first))
    history.add(an_event(0, phase_started=trainer_pb2.PhaseStarted(phase="train")))
    history.add(a_step(1))
    kinds = [event.WhichOneof("event") for event in history.between(0, 1)]
    assert kinds == ["evaluated", "step_completed"]
    assert history.between(1, 1) == []


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.add(a_step(1))
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"stepCompleted":{"st')
    assert [e.step_completed.step for e in history.between(0, 9)] == [1]
    assert History(tmp_path / "empty").between(0, 9) == []


def test_a_line_that_was_cut_off_costs_no_other(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        History(tmp_path).add(a_step(step))
    file = tmp_path / "history.jsonl"
    file.write_bytes(file.read_bytes()[:-40])  # the disk was full, or power was lost
    history = History(tmp_path)
    for step in (3, 4):  # the attempt that goes on
        history.add(a_step(step))
    assert [e.step_completed.step for e in history.between(0, 9)] == [1, 2, 3, 4]
    assert b"\n\n" not in file.read_bytes()


def test_a_line_that_tells_nothing_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{}\n{"time": "2026-01-01T00:00:00Z"}\n')
    history = History(tmp_path)
    history.add(a_step(1))
    assert [event.step_completed.step for event in history.between(0, 1)] == [1]
