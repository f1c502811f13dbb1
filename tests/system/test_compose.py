"""The whole of ELITE in containers: a real engine, real images, a real training, and what breaks.

Needs Docker with the images of `make images` and those that the Compose file names
(stand_ins.Dockerfile makes some where no registry can be reached). `make test-system` runs it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from services.trainer.jobs.states import FAILED, SUCCEEDED
from tests.fixtures.engine import (
    LLAMA_LINEARS,
    a_plan,
    tiny_config,
    write_corpus,
    write_tiny_model,
)
from tests.support.needs import skip_without
from tests.support.trainer_stack import REPOSITORY

_FILE = REPOSITORY / "deploy" / "compose" / "compose.yaml"
_PATIENCE_SECONDS = 240.0
_STEPS = 120
_PORTS = ("PROFILER", "PLANNER", "TRAINER", "PROMETHEUS", "GRAFANA")
_OURS = ("profiler", "planner", "trainer-api", "worker")


def _images() -> set[str]:
    try:
        listed = subprocess.run(
            ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"],
            capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return set()
    return set(listed.stdout.split())


pytestmark = skip_without(
    {f"elite/{name}:0.1.0" for name in ("planner", "trainer-worker")} - _images(),
    "no Docker with the images of `make images`",
)


class Site:
    """A Compose project of this test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("data", "models"):
            (folder / name).mkdir()
        write_tiny_model(folder / "models" / "tiny")
        write_corpus(folder / "data" / "code")
        # Containers are other users than this one.
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        self.ports = {name: _free_port() for name in _PORTS}
        self._environment = os.environ | {
            "ELITE_DATA": str(folder / "data"), "ELITE_MODELS": str(folder / "models"),
            **{f"ELITE_{name}_PORT": str(port) for name, port in self.ports.items()},
        }  # fmt: skip
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.ports['TRAINER']}")
        self.stub = trainer_pb2_grpc.TrainerServiceStub(self.channel)

    def compose(self, *arguments: str) -> str:
        command = ["docker", "compose", "-p", "elite-system-test", "-f", str(_FILE),
                   "--profile", "monitoring", *arguments]  # fmt: skip
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=False,
            timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stderr[-3000:]}"
        return done.stdout

    def create(self) -> str:
        plan = a_plan(tiny_config(), LLAMA_LINEARS, optimizer=planner_pb2.OPTIMIZER_KIND_ADAMW)
        plan.step_seconds = plan.step_seconds_high = 1.0
        spec = trainer_pb2.RunSpec(
            plan=plan, model_path="/models/tiny", data=trainer_pb2.DataSource(path="/data/code"),
            training=trainer_pb2.TrainingSettings(
                steps=_STEPS, checkpoint_every_steps=10, evaluation_windows=1, seed=3
            ),
        )  # fmt: skip
        run_id: str = self.stub.CreateRun(
            trainer_pb2.CreateRunRequest(spec=spec), timeout=30
        ).run.run_id
        return run_id

    def get(self, run_id: str) -> trainer_pb2.Run:
        return self.stub.GetRun(trainer_pb2.GetRunRequest(run_id=run_id), timeout=20).run

    def end(self, run_id: str) -> trainer_pb2.Run:
        """Waits, however often a service is away meanwhile."""
        give_up_at = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < give_up_at:
            try:
                run = self.get(run_id)
            except grpc.RpcError:
                run = trainer_pb2.Run()
            if run.state in (SUCCEEDED, FAILED):
                return run
            time.sleep(0.3)
        raise TimeoutError(self.compose("logs", "--tail", "60"))

    def wait_for_steps(self, run_id: str, steps: int) -> None:
        give_up_at = time.monotonic() + _PATIENCE_SECONDS
        while self.get(run_id).progress.completed_steps < steps:
            assert time.monotonic() < give_up_at, self.compose("logs", "--tail", "60")
            time.sleep(0.1)

    def losses(self, run_id: str) -> dict[int, float]:
        events = self.stub.WatchRun(trainer_pb2.WatchRunRequest(run_id=run_id), timeout=60)
        steps = (
            one.event.step_completed
            for one in events
            if one.event.WhichOneof("event") == "step_completed"
        )
        return {step.step: step.loss for step in steps}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("compose")
    folder.chmod(0o755)
    folder.parent.chmod(0o755)
    subprocess.run([REPOSITORY / "scripts" / "compose_secrets.sh"], check=True)
    made = Site(folder)
    try:
        made.compose("up", "-d", "--no-build", "--pull", "never", "--wait")
        yield made
    finally:
        made.channel.close()
        made.compose("down", "--volumes", "--timeout", "5")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> dict[int, float]:
    run_id = site.create()
    run = site.end(run_id)
    assert run.state == SUCCEEDED, run.error
    return site.losses(run_id)


@pytest.mark.parametrize("service", ["worker", "redis", "trainer-api"])
def test_a_container_killed_in_mid_run_loses_nothing(
    site: Site, undisturbed: dict[int, float], service: str
) -> None:
    run_id = site.create()
    site.wait_for_steps(run_id, 15)
    time.sleep(1.1)  # what Redis's log may lack
    site.compose("kill", service)
    site.compose("up", "-d", "--no-build", "--pull", "never", "--wait", service)
    run = site.end(run_id)
    assert run.state == SUCCEEDED, run.error
    assert site.losses(run_id) == undisturbed
    assert len(undisturbed) == _STEPS


@pytest.mark.parametrize("name", ["profiler", "planner", "trainer-api", "trainer-worker"])
def test_images_hold_what_runs_and_nothing_to_build_with(name: str) -> None:
    image = f"elite/{name}:0.1.0"
    look = (
        "import importlib.util, json, shutil;"
        "tools = ['gcc', 'make', 'pip', 'pip3', 'apt-get', 'perl', 'git'];"
        "has = [importlib.util.find_spec(part) is not None for part in ('torch', 'opentelemetry')];"
        "print(json.dumps([*has, [tool for tool in tools if shutil.which(tool)]]))"
    )
    command = ["docker", "run", "--rm", "--network", "none", "--read-only", image]
    done = subprocess.run(
        [*command, "python3", "-c", look], capture_output=True, text=True, check=True, timeout=60
    )
    has_torch, has_tracing, tools = json.loads(done.stdout)
    assert tools == []
    assert has_tracing
    assert has_torch == (name in ("profiler", "trainer-worker"))
    if name == "planner":
        size = ["docker", "image", "inspect", "--format", "{{.Size}}", image]
        assert int(subprocess.run(size, capture_output=True, check=True).stdout) < 200_000_000


def test_containers_can_do_little_and_show_no_secret(site: Site) -> None:
    for name in _OURS:
        identifier = site.compose("ps", "-q", name).strip()
        facts: dict[str, Any] = json.loads(
            subprocess.run(
                ["docker", "inspect", identifier], capture_output=True, check=True
            ).stdout
        )[0]
        assert facts["Config"]["User"] == "10001:10001"
        assert facts["HostConfig"]["ReadonlyRootfs"]
        secrets = [path.read_text().strip() for path in (_FILE.parent / "secrets").iterdir()
                   if path.name in ("api", "worker", "metrics", "operator")]  # fmt: skip
        assert not any(secret in json.dumps(facts) for secret in secrets)
        logs = site.compose("logs", "--no-color", name)
        assert not any(secret in logs for secret in secrets)
        wrote = subprocess.run(
            ["docker", "exec", identifier, "touch", "/opt/elite/x"],
            capture_output=True,
            check=False,
        )
        assert wrote.returncode != 0


def test_prometheus_scrapes_everything_that_runs(site: Site, undisturbed: dict[int, float]) -> None:
    assert undisturbed
    give_up_at = time.monotonic() + 90
    while True:
        url = f"http://127.0.0.1:{site.ports['PROMETHEUS']}/api/v1/query?query=up"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.loads(answer.read())["data"]["result"]
        up = {one["metric"]["job"]: one["value"][1] for one in found}
        if up and set(up.values()) == {"1"}:
            break
        assert time.monotonic() < give_up_at, up
        time.sleep(2)
    assert {"profiler", "planner", "trainer-api", "worker"} <= {
        job.removeprefix("elite-") for job in up
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
