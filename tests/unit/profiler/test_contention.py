"""Time spent in waiting for a core, from the kernel's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.profiler.probes.contention import core_wait_share


def write_thread(threads: Path, thread: int, text: str) -> None:
    (threads / str(thread)).mkdir()
    (threads / str(thread) / "schedstat").write_text(text, encoding="ascii")


def test_all_threads_count(tmp_path: Path) -> None:
    write_thread(tmp_path, 1, "600 100 7\n")
    write_thread(tmp_path, 2, "150 150 1\n")
    assert core_wait_share(tmp_path) == pytest.approx(0.25)


@pytest.mark.parametrize("text", ["", "gone", "1 2"])
def test_a_thread_that_cannot_be_read_counts_for_nothing(tmp_path: Path, text: str) -> None:
    write_thread(tmp_path, 1, "300 100 7\n")
    write_thread(tmp_path, 2, text)
    (tmp_path / "3").mkdir()
    assert core_wait_share(tmp_path) == pytest.approx(0.25)


def test_a_kernel_that_does_not_tell(tmp_path: Path) -> None:
    assert core_wait_share(tmp_path) == 0
    write_thread(tmp_path, 1, "0 0 0\n")
    assert core_wait_share(tmp_path) == 0


def test_this_process_ran() -> None:
    assert 0 <= core_wait_share() < 1
