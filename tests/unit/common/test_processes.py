"""What the parent of several workers does about workers that do not stay alive."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from services.common import processes
from services.common.processes import process_count, serve_processes
from services.common.settings import ServerSettings


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "RESTART_PAUSES_SECONDS", (0.01, 0.02))


def run_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, count: int = 2
) -> tuple[int, int]:
    """Serves with a program as the worker; exit status, and how many were started."""
    starts = tmp_path / "starts"
    starts.write_text("")
    program = f"open({str(starts)!r}, 'a').write('.')\n{body}"
    (tmp_path / "some_worker.py").write_text(program)
    path = os.pathsep.join((str(tmp_path), str(Path.cwd())))
    monkeypatch.setenv("PYTHONPATH", path)
    settings = ServerSettings(address="127.0.0.1:0", shutdown_grace_seconds=0)
    return serve_processes("some_worker", "some", count, settings), len(starts.read_text())


REPORT = "from services.common.processes import report_ready; report_ready()\n"


def test_quick_deaths_in_a_row_end_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "elite.processes")
    dying = f"{REPORT}raise SystemExit(3)"
    assert run_workers(tmp_path, monkeypatch, dying, count=1) == (3, 3)
    assert caplog.text.count("a worker died and is started again") == 2
    assert caplog.text.count("a worker does not stay alive: giving up") == 1


def test_a_death_after_long_enough_is_not_held_against_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STABLE_SECONDS", 0.0)
    ends = "import os, signal, pathlib\n" + (
        f"if len(pathlib.Path({str(tmp_path / 'starts')!r}).read_text()) == 6:\n"
        "    os.kill(os.getppid(), signal.SIGTERM); signal.pause()\n"
    )
    assert run_workers(tmp_path, monkeypatch, REPORT + ends, count=1) == (0, 6)


def test_what_never_served_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_workers(tmp_path, monkeypatch, "raise SystemExit(2)") == (2, 1)


def test_a_worker_that_does_not_stop_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(processes, "STOP_MARGIN_SECONDS", 0.1)
    deaf = (
        "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"{REPORT}os.kill(os.getppid(), signal.SIGTERM); signal.pause()"
    )
    assert run_workers(tmp_path, monkeypatch, deaf, count=1) == (0, 1)
    assert "a worker did not stop and is killed" in caplog.text


def test_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_count(3) == 3
    assert process_count(0) == len(os.sched_getaffinity(0))
    monkeypatch.setenv("ELITE_WORKER_READY_FD", "9")
    assert process_count(3) == 1  # a worker starts no workers
