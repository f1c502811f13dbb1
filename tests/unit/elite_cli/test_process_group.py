"""Processes that start, die, refuse to stop, and lose their parents. All of them are real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from elite_cli.errors import CliError
from elite_cli.stack.process import ProcessSpec, processes_with
from elite_cli.stack.process_group import STACK_VARIABLE, ProcessGroup

SLEEP = "import time; time.sleep(600)"
# Becomes itself again, for as long as it lives.
BECOMING = "import os, sys; os.execv(sys.executable, sys.orig_argv)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP


def spec(name: str, code: str, ready: Callable[[], bool] = lambda: True) -> ProcessSpec:
    return ProcessSpec(name, (sys.executable, "-c", code), ready, {}, stop_seconds=1.0)


class Recorder:
    """A group over a temporary folder, and what it reported."""

    def __init__(self, folder: Path) -> None:
        self.lines: list[str] = []
        self.group = ProcessGroup(uuid.uuid4().hex, folder, self.lines.append)


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_they_stop_in_reverse_order_and_none_is_left(recorder: Recorder) -> None:
    with recorder.group as group:
        group.start([spec("first", SLEEP), spec("second", SLEEP)])
        group.check()
        assert len(group.living()) == 2
    assert group.living() == []
    assert recorder.lines == ["first is up", "second is up", "stopping second", "stopping first"]


def test_a_death_names_the_process_and_shows_its_log(recorder: Recorder) -> None:
    code = "print('the cause'); raise SystemExit(7)"
    with recorder.group as group, pytest.raises(CliError) as raised:
        group.start([spec("broken", code, ready=lambda: False)])
    assert "broken ended (exit status 7)" in raised.value.lines[0]
    assert "  the cause" in raised.value.hints


def test_a_later_death_is_noticed(recorder: Recorder) -> None:
    with recorder.group as group:
        group.start([spec("one", SLEEP), spec("other", SLEEP)])
        os.kill(group.living()[-1], signal.SIGKILL)

        def dead() -> bool:
            try:
                group.check()
            except CliError as error:
                return "killed by SIGKILL" in str(error)
            return False

        wait_until(dead)
    assert group.living() == []


def test_not_ready_in_time(recorder: Recorder) -> None:
    with recorder.group as group, pytest.raises(CliError, match="slow was not ready after 0 s"):
        group.start([spec("slow", SLEEP, ready=lambda: False)], start_seconds=0.3)
    assert group.living() == []


def test_one_that_ignores_the_request_is_killed(recorder: Recorder, tmp_path: Path) -> None:
    code = STUBBORN.replace("; import", f"; open({str(tmp_path / 'deaf')!r}, 'w'); import")
    with recorder.group as group:
        group.start([spec("stubborn", code, ready=(tmp_path / "deaf").exists)])
    assert group.living() == []
    assert "stubborn did not stop by itself and was killed" in recorder.lines


def test_what_has_left_the_session_is_found(recorder: Recorder) -> None:
    code = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', "
        f"{SLEEP!r}], start_new_session=True)"
    )
    with recorder.group as group:
        group.start([spec("parent", f"{code}; {SLEEP}", ready=lambda: len(group.living()) == 2)])
    assert group.living() == []


def test_a_log_of_the_time_before_is_kept(tmp_path: Path) -> None:
    for word in ("earlier", "later"):
        with Recorder(tmp_path).group as group:
            ready = (tmp_path / "talker.log").exists
            group.start([spec("talker", f"print({word!r}, flush=True); {SLEEP}", ready)])
            wait_until(lambda word=word: word in (tmp_path / "talker.log").read_text())  # type: ignore[misc]
    assert "earlier" in (tmp_path / "talker.previous.log").read_text()


def test_one_that_is_becoming_another_program_is_found() -> None:
    stack_id = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", BECOMING], env={**os.environ, STACK_VARIABLE: stack_id}
    )
    try:
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            assert processes_with(STACK_VARIABLE, stack_id) == [process.pid]
    finally:
        process.kill()
        process.wait()


def test_one_without_an_environment_does_not_stop_the_search() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", SLEEP], env={})
    try:
        assert process.pid not in processes_with(STACK_VARIABLE, uuid.uuid4().hex)
    finally:
        process.kill()
        process.wait()


def test_killing_the_parent_leaves_nothing(tmp_path: Path) -> None:
    stack_id = uuid.uuid4().hex
    code = f"""
import sys, time
from pathlib import Path
from elite_cli.stack.process import ProcessSpec
from elite_cli.stack.process_group import ProcessGroup
folder = Path({str(tmp_path)!r})
specs = [ProcessSpec(str(i), (sys.executable, "-c", {SLEEP!r}), lambda: True) for i in range(2)]
with ProcessGroup({stack_id!r}, folder, print) as group:
    group.start(specs)
    print("started", flush=True)
    time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        assert any(line == "started\n" for line in parent.stdout)
        assert len(processes_with(STACK_VARIABLE, stack_id)) == 2
    finally:
        parent.kill()
        parent.communicate()
    wait_until(lambda: not processes_with(STACK_VARIABLE, stack_id))
