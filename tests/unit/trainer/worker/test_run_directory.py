"""Which number an attempt gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from elite.trainer.v1 import trainer_pb2
from services.trainer.worker.run_directory import RunDirectory


def test_a_folder_that_cannot_be_read_does_not_stop_the_queue(tmp_path: Path) -> None:
    """The attempt begins, and its own first write says what is wrong."""
    directory, run = RunDirectory(tmp_path, "run"), trainer_pb2.Run(attempt_count=2)
    (directory.path / ".fencing-token").mkdir(parents=True)
    assert directory.next_attempt(run) == 3
    with pytest.raises(IsADirectoryError):
        directory.prepare(run)
