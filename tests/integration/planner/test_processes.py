"""Several planner processes behind one port, and the parent that keeps them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from bench.planner import free_port
from elite.planner.v1 import planner_pb2 as pb
from elite.planner.v1 import planner_pb2_grpc

SECONDS = 30
# Connections, not calls, are dealt out: with so many, one of two workers gets none in one test run
# of 2 ** 31.
CONNECTIONS = 32


class Planner:
    """A parent process, its address and its log."""

    def __init__(self, folder: Path, **settings: str) -> None:
        settings = {
            "worker_processes": "2",
            "address": f"127.0.0.1:{free_port()}",
            "metrics_address": f"127.0.0.1:{free_port()}",
            "state_directory": str(folder / "state"),
            **settings,
        }
        self.address, self.metrics_address = settings["address"], settings["metrics_address"]
        self._log = folder / "planner.log"
        named = {f"ELITE_PLANNER_{name.upper()}": value for name, value in settings.items()}
        # Its own folder for temporary files shows what it leaves behind.
        self.temporary = folder / "temporary"
        self.temporary.mkdir(exist_ok=True)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.planner"],
                env=os.environ | named | {"TMPDIR": str(self.temporary)},
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def logged(self, message: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["message"] == message]

    def workers(self) -> list[int]:
        pid = self.process.pid
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]

    def metric(self, name: str) -> float:
        """The sum of all samples of a name."""
        url = f"http://{self.metrics_address}/metrics"
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            lines = answer.read().decode().splitlines()
        found = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def wait(self) -> int:
        return self.process.wait(timeout=SECONDS)


@contextmanager
def planner(folder: Path, **settings: str) -> Iterator[Planner]:
    """Two workers that serve, until the end of the `with`."""
    started = Planner(folder, **settings)
    try:
        eventually(lambda: bool(started.logged("all workers serve")))
        yield started
    finally:
        started.process.kill()
        started.process.wait()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def connection(address: str) -> Iterator[planner_pb2_grpc.PlannerServiceStub]:
    """A client with a connection of its own; gRPC would share one among the channels."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        yield planner_pb2_grpc.PlannerServiceStub(channel)


def ask(address: str) -> None:
    with connection(address) as stub:
        answer = stub.ListTiers(pb.ListTiersRequest(), wait_for_ready=True, timeout=SECONDS)
        assert len(answer.tiers) == 11


def ask_until_answered(address: str) -> None:
    """A connection that the dying worker was dealt is lost; the client asks again."""

    def is_answered() -> bool:
        try:
            ask(address)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            raise
        return True

    eventually(is_answered)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_two_workers_answer_on_one_port_and_share_their_metrics(tmp_path: Path) -> None:
    with planner(tmp_path) as running:
        assert len(running.workers()) == 2
        for _ in range(CONNECTIONS):
            ask(running.address)
        (metrics,) = running.temporary.iterdir()
        counters = {file.name for file in metrics.glob("counter_*.db")}
        assert counters == {f"counter_{pid}.db" for pid in running.workers()}
        eventually(lambda: running.metric("elite_planner_rpc_requests_total") == CONNECTIONS)
        assert running.metric("elite_planner_rpc_duration_seconds_count") == CONNECTIONS
        assert running.metric("elite_planner_worker_restarts_total") == 0


def test_a_worker_that_is_killed_comes_back(tmp_path: Path) -> None:
    with planner(tmp_path) as running:
        ask(running.address)
        before = set(running.workers())
        os.kill(min(before), signal.SIGKILL)
        for _ in range(CONNECTIONS):
            ask_until_answered(running.address)
        eventually(lambda: len(running.logged("serving")) == 3)
        assert len(set(running.workers()) - before) == 1
        assert running.metric("elite_planner_worker_restarts_total") == 1
        (death,) = running.logged("a worker died and is started again")
        assert death["exit_status"] == -signal.SIGKILL
        # What the dead worker had counted still counts.
        assert running.metric("elite_planner_rpc_requests_total") > CONNECTIONS


def test_sigterm_drains_all(tmp_path: Path) -> None:
    with planner(tmp_path) as running:
        workers = running.workers()
        with connection(running.address) as stub:
            calls = [stub.ListOptimizations.future(pb.ListOptimizationsRequest()) for _ in "abcd"]
            assert all(call.result(timeout=SECONDS).optimizations for call in calls)
            running.process.send_signal(signal.SIGTERM)
            assert running.wait() == 0
        assert len(running.logged("draining")) == len(running.logged("stopped")) == 2
        assert not any(map(is_alive, workers))
        assert list(running.temporary.iterdir()) == []
        assert "Traceback" not in running.log


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    with planner(tmp_path) as running:
        workers = running.workers()
        running.process.kill()
        running.wait()
        eventually(lambda: not any(map(is_alive, workers)))


def test_a_port_is_shared_with_no_other_server(tmp_path: Path) -> None:
    """Not with another parent and its workers, which ask for a shared port, and not with one."""
    with planner(tmp_path) as running:
        for count in ("1", "2"):
            other = Planner(make(tmp_path / count), address=running.address, worker_processes=count)
            assert other.wait() == 2
            assert f"elite planner: cannot listen on {running.address}: " in other.log
            assert "Traceback" not in other.log
        ask(running.address)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"address": "unix:/tmp/planner.sock"}, "cannot share the Unix socket unix:/tmp/planner."),
        ({"address": "127.0.0.1:99999"}, "cannot listen on 127.0.0.1:99999: give host:port"),
        ({"ladder_file": "/no/such.yaml"}, "/no/such.yaml: cannot be read"),
    ],
)
def test_a_wrong_setting_is_named_once(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    refused = Planner(tmp_path, **settings)
    assert refused.wait() == 2
    assert refused.log.count(message) == 1
    assert "Traceback" not in refused.log


def test_any_free_port(tmp_path: Path) -> None:
    with planner(tmp_path, address="127.0.0.1:0") as running:
        (serving,) = running.logged("all workers serve")
        ask(str(serving["address"]))


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder
