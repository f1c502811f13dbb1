"""Whose folder it is: the newest attempt's, and a living process's."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.trainer.jobs import durable
from services.trainer.jobs.fence import DamagedTokenError, Fence, OwnedFolder, SupersededError


def test_an_older_attempt_is_refused(tmp_path: Path) -> None:
    first, second = Fence(tmp_path / "run", 1), Fence(tmp_path / "run", 2)
    first.take()
    with first.held():
        pass
    second.take()
    with pytest.raises(SupersededError, match="attempt 2 by now; this is attempt 1"), first.held():
        pytest.fail("the folder is another's")
    with pytest.raises(SupersededError):
        first.take()
    with second.held():
        pass


def test_an_attempt_may_take_its_folder_twice(tmp_path: Path) -> None:
    for _ in range(2):
        Fence(tmp_path, 3).take()


def test_the_token_is_on_the_disk_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(durable, "flush_entry", lambda path: flushed.append(path.read_text()
                        if path.is_file() else path.name))  # fmt: skip
    Fence(tmp_path / "run", 7).take()
    assert flushed == ["7", "run"]


@pytest.mark.parametrize("damaged", [b"", b"\0\0", b"1x", b"\xff"])
def test_a_damaged_token_refuses_to_write_until_the_next_attempt(
    tmp_path: Path, damaged: bytes
) -> None:
    first, second = Fence(tmp_path, 1), Fence(tmp_path, 2)
    first.take()
    (tmp_path / ".fencing-token").write_bytes(damaged)
    with (
        pytest.raises(DamagedTokenError, match=r"fencing-token is damaged.*ResumeRun"),
        first.held(),
    ):
        pytest.fail("nobody knows whose the folder is")
    second.take()
    with second.held():
        pass
    with pytest.raises(SupersededError), first.held():
        pytest.fail("the folder is another's")


# Children are spawned: a forked one would share the lock of the process it comes from.
def test_a_new_attempt_waits_for_what_an_older_one_is_writing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    old = Fence(tmp_path, 1)
    old.take()
    taken = context.Event()
    with old.held():
        process = context.Process(target=_take, args=(tmp_path, 2, taken))
        process.start()
        assert not taken.wait(0.3)
    assert taken.wait(30)
    process.join()


def test_a_thousand_takers_leave_the_highest(tmp_path: Path) -> None:
    """Four processes at once; whoever comes late with a low token is refused."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_take_many, args=(tmp_path, range(start, 1000, 4)))
        for start in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with pytest.raises(SupersededError, match="attempt 999"):
        Fence(tmp_path, 998).take()


def test_a_folder_is_left_to_the_process_that_owns_it(tmp_path: Path) -> None:
    first = OwnedFolder.first_free(_names(tmp_path))
    second = OwnedFolder.first_free(_names(tmp_path))
    assert (first.path.name, second.path.name) == ("a", "b")
    del first
    assert OwnedFolder.first_free(_names(tmp_path)).path.name == "a"


def _names(folder: Path) -> Iterator[Path]:
    return iter([folder / "a", folder / "b"])


def _take(folder: Path, token: int, taken: Any) -> None:
    Fence(folder, token).take()
    taken.set()


def _take_many(folder: Path, tokens: range) -> None:
    for token in tokens:
        try:
            Fence(folder, token).take()
        except SupersededError:
            continue
