"""The monitoring against a real Prometheus: rules, their cases, and every query of every dashboard.

Needs Prometheus: `apt-get install --no-install-recommends prometheus`. Where the exporters of Redis
and of the node are installed, too, their panels are asked as well.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from deploy.monitoring.grafana.dashboards import DASHBOARDS
from elite.planner.v1 import planner_pb2, planner_pb2_grpc
from elite.profiler.v1 import profiler_pb2, profiler_pb2_grpc
from elite.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from tests.fixtures.engine import LLAMA_LINEARS, a_plan, tiny_config, write_tiny_model
from tests.fixtures.engine import write_corpus as write_code
from tests.support.machines import by_id, hypothetical
from tests.support.needs import SKIP_NOTHING, skip_without
from tests.support.trainer_stack import REPOSITORY, TrainerStack, wait_until
from tests.support.valkey import Valkey

PROMETHEUS = REPOSITORY / "deploy" / "monitoring" / "prometheus"
MISSING = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
REDIS_EXPORTER, NODE_EXPORTER = "prometheus-redis-exporter", "prometheus-node-exporter"
PATIENCE_SECONDS = 60.0

pytestmark = skip_without(MISSING, f"not installed: {', '.join(MISSING)} (package prometheus)")

# Beginnings of metrics that cannot have data here: of NVIDIA's exporter, without a GPU, and of
# those that are not installed.
WITHOUT_DATA = ["DCGM_"] + [
    prefix
    for prefix, program in (("redis_", REDIS_EXPORTER), ("node_", NODE_EXPORTER))
    if shutil.which(program) is None and not SKIP_NOTHING
]

QUERIES = [
    pytest.param(query.expression, id=f"{one.uid}: {panel.title}: {query.legend}")
    for one in DASHBOARDS
    for panel in one.panels()
    for query in panel.queries
] + [
    pytest.param(rule["record"], id=rule["record"])
    for group in yaml.safe_load((PROMETHEUS / "rules" / "recording.yml").read_text())["groups"]
    for rule in group["rules"]
]


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["promtool", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_configuration_is_one() -> None:
    checked = promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("name", ["recording", "alerts"])
def test_rules_are_rules(name: str) -> None:
    checked = promtool("check", "rules", "--lint-fatal", f"{PROMETHEUS}/rules/{name}.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", sorted((PROMETHEUS / "tests").glob("*.yml")), ids=lambda p: p.stem)
def test_alerts_fire_and_do_not(path: Path) -> None:
    tested = promtool("test", "rules", str(path))
    assert tested.returncode == 0, tested.stdout + tested.stderr


class Monitored:
    """All services as processes, the real engine, and a Prometheus that scrapes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._closing = ExitStack()
        self._log_paths: list[Path] = []
        names = ("profiler", "planner", "trainer-api", "redis", "node", "prometheus")
        self.metrics = {name: free_address() for name in (*names, "worker")}
        self.grpc = {name: free_address() for name in names[:3]}
        self.valkey = Valkey().start()
        self._closing.callback(self.valkey.close)
        self.stack = TrainerStack(folder, self.valkey)
        self._closing.callback(self.stack.close)

    def start(self) -> None:
        """Everything; returns when Prometheus answers."""
        self._service("services.profiler", "ELITE_PROFILER", "profiler", KERNEL_PROBE_DELAY="3600")
        self._service("services.planner", "ELITE_PLANNER", "planner")
        self._service("services.trainer.api", "ELITE_TRAINER_API", "trainer-api")
        channel = self._closing.enter_context(self.channel("trainer-api"))
        self.stack.stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        self.stack.start_worker(
            engine_command=shlex.join((sys.executable, "-m", "services.trainer.engine")),
            metrics_address=self.metrics["worker"],
            planner_address=self.grpc["planner"],
        )
        self._exporters()
        self._prometheus()

    def close(self) -> None:
        """Ends everything."""
        self._closing.close()

    def describe(self) -> str:
        """The logs."""
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in self._log_paths)

    def channel(self, name: str) -> grpc.Channel:
        """A connection to a service that serves."""
        channel = grpc.insecure_channel(self.grpc[name])
        grpc.channel_ready_future(channel).result(timeout=PATIENCE_SECONDS)
        return channel

    def plan(self, times: int) -> None:
        """Asks the planner."""
        with self.channel("planner") as channel:
            stub = planner_pb2_grpc.PlannerServiceStub(channel)
            for _ in range(times):
                request = planner_pb2.PlanRequest(
                    machine=hypothetical(), model=by_id("qwen2.5-1.5b")
                )
                stub.Plan(request, timeout=30)

    def measure(self) -> None:
        """The profiler's stress test, the quick one."""
        with self.channel("profiler") as channel:
            stub = profiler_pb2_grpc.ProfilerServiceStub(channel)
            request = profiler_pb2.RunStressTestRequest(quick=True, memory_fraction=0.05)
            for _ in stub.RunStressTest(request, timeout=200):
                pass

    def create(self, steps: int) -> str:
        """A run of the tiny model."""
        plan = a_plan(tiny_config(), LLAMA_LINEARS, optimizer=planner_pb2.OPTIMIZER_KIND_ADAMW)
        plan.step_seconds = plan.step_seconds_high = 0.05
        plan.gpu_memory.total_bytes = plan.host_memory.total_bytes = 400_000
        training = trainer_pb2.TrainingSettings(steps=steps, evaluation_windows=1, seed=3)
        spec = trainer_pb2.RunSpec(
            plan=plan,
            model_path=str(self.folder / "models" / "tiny"),
            data=trainer_pb2.DataSource(path=str(self.folder / "data" / "code")),
            training=training,
        )
        request = trainer_pb2.CreateRunRequest(spec=spec)
        run_id: str = self.stack.stub.CreateRun(request, timeout=20).run.run_id
        return run_id

    def ask(self, path: str, **parameters: str) -> Any:
        """One of Prometheus's own calls. Raises `URLError`."""
        query = urllib.parse.urlencode(parameters)
        url = f"http://{self.metrics['prometheus']}/api/v1/{path}?{query}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    def values(self, expression: str) -> list[float]:
        """Those of an instant query that are numbers."""
        found = self.ask("query", query=expression)["result"]
        values = [float(series["value"][1]) for series in found]
        return [value for value in values if math.isfinite(value)]

    def _service(self, module: str, prefix: str, name: str, **settings: str) -> None:
        environment = self.stack.environment() | {
            f"{prefix}_ADDRESS": self.grpc[name],
            f"{prefix}_METRICS_ADDRESS": self.metrics[name],
            f"{prefix}_STATE_DIRECTORY": str(self.folder / name),
            **{f"{prefix}_{key}_SECONDS": value for key, value in settings.items()},
        }
        self._start(name, [sys.executable, "-m", module], environment)

    def _start(
        self, name: str, command: list[str], environment: Mapping[str, str] | None = None
    ) -> None:
        path = self.folder / f"{name}.log"
        self._log_paths.append(path)
        with path.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log
            )
        self._closing.callback(process.wait)
        self._closing.callback(process.kill)

    def _exporters(self) -> None:
        listen = "--web.listen-address"
        if shutil.which(REDIS_EXPORTER):
            redis = f"--redis.addr=redis://127.0.0.1:{self.valkey.port}"
            self._start("redis", [REDIS_EXPORTER, f"{listen}={self.metrics['redis']}", redis])
        if shutil.which(NODE_EXPORTER):
            self._start("node", [NODE_EXPORTER, f"{listen}={self.metrics['node']}"])

    def _prometheus(self) -> None:
        config = self.folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(self._configuration()))
        arguments = {
            "config.file": config,
            "web.listen-address": self.metrics["prometheus"],
            "storage.tsdb.path": self.folder / "series",
        }
        self._start("prometheus", ["prometheus", *(f"--{k}={v}" for k, v in arguments.items())])
        wait_until(self._is_up, "Prometheus", self.describe)

    def _configuration(self) -> dict[str, Any]:
        """Ours, but for where things are and how often it looks."""
        config: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(PROMETHEUS / "rules" / "*.yml")]
        del config["alerting"]
        programs = {"redis": REDIS_EXPORTER, "node": NODE_EXPORTER}
        for job in config["scrape_configs"]:
            name = job["job_name"]
            is_there = name in self.metrics and shutil.which(programs.get(name, sys.executable))
            for discovery in ("dns_sd_configs", "file_sd_configs"):
                job.pop(discovery, None)
            job["static_configs"] = [{"targets": [self.metrics[name]] if is_there else []}]
        return config

    def _is_up(self) -> bool:
        try:
            return bool(self.values("up == 1"))
        except urllib.error.URLError:
            return False


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Monitored, str]]:
    """What is monitored, and a run that is on its worker."""
    folder = tmp_path_factory.mktemp("monitored")
    write_tiny_model(folder / "models" / "tiny")
    write_code(folder / "data" / "code")
    monitored = Monitored(folder)
    try:
        monitored.start()
        yield monitored, a_lively_minute(monitored)
    finally:
        monitored.close()


def a_lively_minute(monitored: Monitored) -> str:
    """Measures, plans, two runs that succeed, one that goes on: its id."""
    monitored.measure()
    for _ in range(2):
        # A rise shows where there was a scrape before it.
        monitored.plan(10)
        run_id = monitored.create(steps=20)
        monitored.stack.wait_for(run_id, trainer_pb2.RUN_STATE_SUCCEEDED)
        time.sleep(2)
    monitored.plan(10)
    run_id = monitored.create(steps=1_000_000)
    monitored.stack.wait_for_steps(run_id, 5)
    return run_id


@pytest.mark.timeout(600)
@pytest.mark.parametrize("expression", QUERIES)
def test_a_query_has_data(monitored: tuple[Monitored, str], expression: str) -> None:
    prometheus, run_id = monitored
    for name, value in {"$run": run_id, "$__rate_interval": "30s", "$__range": "10m"}.items():
        expression = expression.replace(name, value)
    if any(prefix in expression for prefix in WITHOUT_DATA):
        # That it can be asked is all that can be seen here.
        assert prometheus.values(expression) == []
        return
    wait_until(lambda: bool(prometheus.values(expression)), expression, prometheus.describe, 30)


def test_every_target_answers(monitored: tuple[Monitored, str]) -> None:
    prometheus, _ = monitored
    wait_until(lambda: prometheus.values("up == 0") == [], "all targets", prometheus.describe, 30)


def test_every_rule_can_be_evaluated(monitored: tuple[Monitored, str]) -> None:
    prometheus, _ = monitored

    def health() -> dict[str, str]:
        groups = prometheus.ask("rules")["groups"]
        return {rule["name"]: f"{rule['health']} {rule.get('lastError', '')}".strip()
                for group in groups for rule in group["rules"]}  # fmt: skip

    wait_until(lambda: set(health().values()) == {"ok"}, "rules", lambda: str(health()), 30)


def test_nothing_is_wrong_with_what_works(monitored: tuple[Monitored, str]) -> None:
    prometheus, _ = monitored
    # The numbers of the tiny plan are made up.
    made_up = {"RunMemoryOffPlan", "PredictionsOff"}
    alerts = prometheus.ask("alerts")["alerts"]
    names = {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}
    # The machine's own disks may be full; that is not ours.
    assert names <= made_up | {"NodeDiskNearFull", "ScratchDiskNearFull"}
