"""Real child processes: lines, exits, groups."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.worker.engine_process import (
    LONGEST_LINE_BYTES,
    EngineProcess,
    _LineSplitter,
)
from tests.support.trainer_stack import is_alive, wait_until

# Writes to the descriptor named by its last argument.
PREAMBLE = "import os, sys, time, subprocess; fd = int(sys.argv[-1]); "


def start(code: str, folder: Path) -> EngineProcess:
    return EngineProcess.start([sys.executable, "-c", PREAMBLE + code], folder / "engine.log")


@given(
    lines=st.lists(st.binary(min_size=1).filter(lambda b: b"\n" not in b and b.strip())),
    cuts=st.lists(st.integers(0, 200)),
)
def test_lines_do_not_depend_on_where_the_pipe_cuts(lines: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    splitter = _LineSplitter()
    chunks = [stream[a:b] for a, b in itertools.pairwise(edges)]
    assert [line for chunk in chunks for line in splitter.feed(chunk)] == lines


def test_overlong_line_is_dropped_and_the_next_one_kept() -> None:
    splitter = _LineSplitter()
    assert splitter.feed(b"x" * (LONGEST_LINE_BYTES + 1)) == []
    assert splitter.feed(b"x" * 100) == []
    assert splitter.feed(b"tail\nnext\n") == [b"next"]


async def test_last_lines_are_read_although_the_engine_has_exited(tmp_path: Path) -> None:
    engine = start("os.write(fd, b'line\\n' * 5000)", tmp_path)
    assert [line async for line in engine.lines()] == [b"line"] * 5000
    assert await engine.close() == 0


async def test_output_and_errors_go_to_the_log(tmp_path: Path) -> None:
    engine = start("print('out', flush=True); sys.exit('err')", tmp_path)
    assert [line async for line in engine.lines()] == []
    assert await engine.close() == 1
    assert (tmp_path / "engine.log").read_text() == "out\nerr\n"


async def test_our_secrets_do_not_reach_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELITE_TRAINER_REDIS_URL", "redis://user:hush@host")
    monkeypatch.setenv("SOMETHING_ELSE", "kept")
    engine = start("os.write(fd, repr(dict(os.environ)).encode() + b'\\n')", tmp_path)
    (line,) = [line async for line in engine.lines()]
    await engine.close()
    assert b"hush" not in line
    assert b"kept" in line


async def test_a_signal_shows_in_the_exit_status(tmp_path: Path) -> None:
    engine = start("os.write(fd, b'up\\n'); time.sleep(600)", tmp_path)
    await anext(engine.lines())
    engine.ask_to_stop()
    await engine.exited()
    assert await engine.close() == -signal.SIGTERM


async def test_close_kills_the_whole_group(tmp_path: Path) -> None:
    code = "p = subprocess.Popen(['sleep', '600']); os.write(fd, b'%d\\n' % p.pid); time.sleep(600)"
    engine = start(code, tmp_path)
    grandchild = int(await anext(engine.lines()))
    assert os.getsid(grandchild) == engine.process_id != os.getsid(0)
    assert await engine.close() == -signal.SIGKILL
    wait_until(lambda: not is_alive(grandchild), "the grandchild's end")


async def test_silent_engine_that_closed_its_pipe_is_still_waited_for(tmp_path: Path) -> None:
    engine = start("os.close(fd); time.sleep(0.3); sys.exit(7)", tmp_path)
    assert [line async for line in engine.lines()] == []
    await engine.exited()
    assert await engine.close() == 7


async def test_program_that_does_not_exist_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        EngineProcess.start(["no-such-program"], tmp_path / "engine.log")


def test_engine_dies_with_its_supervisor(tmp_path: Path) -> None:
    code = (
        "import asyncio, os, sys, pathlib\n"
        "from services.trainer.worker.engine_process import EngineProcess\n"
        "async def main():\n"
        f"    log = pathlib.Path({str(tmp_path / 'engine.log')!r})\n"
        "    engine = EngineProcess.start(['sh', '-c', 'sleep 600'], log)\n"
        "    print(engine.process_id, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    engine = int(done.stdout)
    wait_until(lambda: not is_alive(engine), "the engine's end")
