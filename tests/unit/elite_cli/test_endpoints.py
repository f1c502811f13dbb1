"""A stack is believed only while its process holds the lock."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from elite_cli.endpoints import (
    ENDPOINTS_FILE,
    Endpoints,
    StackAlreadyRunningError,
    hold_stack_lock,
    read_endpoints,
    remove_endpoints,
    write_endpoints,
)

ENDPOINTS = Endpoints(1, "id", {"planner": "127.0.0.1:1"}, {"planner": "127.0.0.1:2"})


def test_read_while_the_stack_runs(tmp_path: Path) -> None:
    with hold_stack_lock(tmp_path):
        write_endpoints(tmp_path, ENDPOINTS)
        assert read_endpoints(tmp_path) == ENDPOINTS


def test_a_file_left_behind_is_ignored(tmp_path: Path) -> None:
    with hold_stack_lock(tmp_path):
        write_endpoints(tmp_path, ENDPOINTS)
    assert (tmp_path / ENDPOINTS_FILE).exists()
    assert read_endpoints(tmp_path) is None


def test_no_directory_no_stack(tmp_path: Path) -> None:
    assert read_endpoints(tmp_path / "missing") is None


def test_a_starting_stack_has_no_addresses_yet(tmp_path: Path) -> None:
    with hold_stack_lock(tmp_path):
        assert read_endpoints(tmp_path) is None
        (tmp_path / ENDPOINTS_FILE).write_text("{not json")
        assert read_endpoints(tmp_path) is None


def test_the_file_is_private(tmp_path: Path) -> None:
    write_endpoints(tmp_path, ENDPOINTS)
    assert stat.S_IMODE((tmp_path / ENDPOINTS_FILE).stat().st_mode) == 0o600
    remove_endpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_stack_a_directory(tmp_path: Path) -> None:
    second = hold_stack_lock(tmp_path)
    with hold_stack_lock(tmp_path), pytest.raises(StackAlreadyRunningError):
        second.__enter__()
    with hold_stack_lock(tmp_path):
        pass  # free again
