"""Folders are whole or not there."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from services.trainer.jobs.durable import (
    MANIFEST,
    CorruptFolderError,
    cached_folder,
    replace_folder,
    verify_folder,
)
from services.trainer.jobs.fence import Fence, SupersededError


def write(folder: Path) -> None:
    (folder / "a").write_text("one")
    (folder / "b").write_text("two")


def test_a_written_folder_verifies(tmp_path: Path) -> None:
    size = replace_folder(tmp_path / "x", write)
    verify_folder(tmp_path / "x")
    assert size == sum(path.stat().st_size for path in (tmp_path / "x").iterdir())


@pytest.mark.parametrize("harm", ["truncate", "alter", "remove", "manifest", "no_manifest"])
def test_any_harm_is_noticed(tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "x"
    replace_folder(folder, write)
    if harm == "truncate":
        os.truncate(folder / "a", 1)
    elif harm == "alter":
        (folder / "a").write_text("uno")
    elif harm == "remove":
        (folder / "b").unlink()
    elif harm == "manifest":
        os.truncate(folder / MANIFEST, 10)
    else:
        (folder / MANIFEST).unlink()
    with pytest.raises(CorruptFolderError):
        verify_folder(folder)


def test_a_failed_write_leaves_the_old_folder_and_no_trace(tmp_path: Path) -> None:
    replace_folder(tmp_path / "x", write)

    def fail(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_folder(tmp_path / "x", fail)
    verify_folder(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "x.tmp-77").mkdir()
    (tmp_path / "x.tmp-77" / "junk").write_text("half")
    assert not cached_folder(tmp_path / "x", write)
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["a", "b", MANIFEST]
    assert not (tmp_path / "x.tmp-77").exists()


def test_nothing_is_replaced_without_leave(tmp_path: Path) -> None:
    replace_folder(tmp_path / "x", write)
    fence = Fence(tmp_path, 1)
    Fence(tmp_path, 2).take()
    with pytest.raises(SupersededError, match="attempt 2 by now; this is attempt 1"):
        replace_folder(tmp_path / "x", write, fence.held)
    verify_folder(tmp_path / "x")
    assert not list(tmp_path.glob("*.tmp-*"))


def test_a_cache_is_used_again_and_repaired(tmp_path: Path) -> None:
    assert not cached_folder(tmp_path / "c", write)
    assert cached_folder(tmp_path / "c", write)
    os.truncate(tmp_path / "c" / "a", 0)
    assert not cached_folder(tmp_path / "c", write)
    verify_folder(tmp_path / "c")


def _slow_write(folder: Path) -> None:
    (folder / str(os.getpid())).write_text("written")
    time.sleep(0.2)


def _fill(destination: str) -> None:
    cached_folder(Path(destination), _slow_write)


def test_of_many_processes_one_writes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(str(tmp_path / "c"),)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(worker.exitcode == 0 for worker in workers)
    verify_folder(tmp_path / "c")
    written = [path.name for path in (tmp_path / "c").iterdir() if path.name != MANIFEST]
    assert len(written) == 1
