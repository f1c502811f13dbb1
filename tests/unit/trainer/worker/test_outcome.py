"""What the end of an engine means."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from elite.trainer.v1 import trainer_pb2
from services.trainer.worker.outcome import EngineEnd, failure_of, log_tail, memory_kill_count

CLEAN = EngineEnd(exit_status=0, failure=None, adapter_path="/a", memory_kills=0, log_tail="tail")


def test_success_needs_an_adapter() -> None:
    assert failure_of(CLEAN) is None
    error = failure_of(replace(CLEAN, adapter_path=""))
    assert error is not None
    assert error.cause == trainer_pb2.FAILURE_CAUSE_INTERNAL


@pytest.mark.parametrize(
    ("status", "memory_kills", "cause"),
    [
        (1, 0, trainer_pb2.FAILURE_CAUSE_INTERNAL),
        (-signal.SIGKILL, 0, trainer_pb2.FAILURE_CAUSE_KILLED),
        (-signal.SIGKILL, 1, trainer_pb2.FAILURE_CAUSE_HOST_OUT_OF_MEMORY),
        (-signal.SIGTERM, 1, trainer_pb2.FAILURE_CAUSE_KILLED),
        (-signal.SIGSEGV, 0, trainer_pb2.FAILURE_CAUSE_INTERNAL),
    ],
)
def test_cause_by_exit_status(
    status: int, memory_kills: int, cause: trainer_pb2.FailureCause
) -> None:
    error = failure_of(replace(CLEAN, exit_status=status, memory_kills=memory_kills))
    assert error is not None
    assert (error.cause, error.stderr_tail) == (cause, "tail")


def test_the_engines_own_word_counts_most() -> None:
    said = trainer_pb2.EngineFailed(cause=trainer_pb2.FAILURE_CAUSE_BAD_DATA, message="why")
    for status in (0, 1, 75, -signal.SIGKILL):
        error = failure_of(replace(CLEAN, exit_status=status, failure=said, memory_kills=1))
        assert error is not None
        assert (error.cause, error.message) == (trainer_pb2.FAILURE_CAUSE_BAD_DATA, "why")


def test_log_tail_is_bounded_and_of_this_attempt(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_bytes(b"earlier\n")
    offset = log.stat().st_size
    with log.open("ab") as file:
        file.write(b"\xff not UTF-8\n" + b"".join(b"line %d\n" % n for n in range(100_000)))
    tail = log_tail(log, offset).splitlines()
    assert tail[-1] == "line 99999"
    assert len(tail) == 40
    assert log_tail(log, log.stat().st_size) == ""
    assert log_tail(tmp_path / "none", 0) == ""


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_memory_kills_are_read_from_both_cgroup_versions(tmp_path: Path) -> None:
    assert memory_kill_count(tmp_path) == 0
    write(tmp_path, "proc/self/cgroup", "0::/pod/worker\n5:memory:/box\n")
    write(tmp_path, "sys/fs/cgroup/pod/worker/memory.events", "low 0\noom 4\noom_kill 2\n")
    assert memory_kill_count(tmp_path) == 2
    events = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"
    write(tmp_path, "sys/fs/cgroup/memory/box/memory.oom_control", events)
    assert memory_kill_count(tmp_path) == 5


def test_memory_kills_inside_a_container_that_sees_its_group_as_the_root(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/memory.events", "oom_kill 1\n")
    assert memory_kill_count(tmp_path) == 1
