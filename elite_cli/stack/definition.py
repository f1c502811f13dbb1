"""The processes of the local stack: what runs, with which settings, in which order."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from elite_cli.stack.ports import address
from elite_cli.stack.probes import celery_worker, grpc_health
from elite_cli.stack.process import ProcessSpec
from elite_cli.stack.valkey import ValkeyServer

# A worker that drains waits so long for the optimiser step in progress and its checkpoint. A
# longer step is lost: the run goes on from its last checkpoint when the stack is up again.
DRAIN_SECONDS = 60
# Recording that, and Celery's own end, come on top.
WORKER_STOP_SECONDS = DRAIN_SECONDS + 15.0

_PYTHON = (sys.executable, "-m")


@dataclass(frozen=True)
class StackOptions:
    """What a user may choose about the local stack."""

    state_directory: Path
    port_base: int
    data_roots: tuple[Path, ...]
    model_roots: tuple[Path, ...]


def stack_processes(
    options: StackOptions, ports: dict[str, int], valkey: ValkeyServer
) -> list[ProcessSpec]:
    """All processes in the order they start; they stop in the reverse order."""
    common = {
        "no_grpc_proxy": "127.0.0.1,localhost",
        "PYTHONUNBUFFERED": "1",
        # For the engine, too: the folder the stack is started in must not shadow a package.
        "PYTHONSAFEPATH": "1",
    }
    trainer = {**common, **_trainer_environment(options, valkey)}
    return [
        ProcessSpec("valkey", valkey.command(), valkey.is_ready, common),
        _server("profiler", "services.profiler", "ELITE_PROFILER_", options, ports, common),
        _server("planner", "services.planner", "ELITE_PLANNER_", options, ports, common),
        _server("trainer", "services.trainer.api", "ELITE_TRAINER_API_", options, ports, trainer),
        _worker(ports, valkey, trainer),
    ]


_FULL_NAMES = {
    "profiler": "elite.profiler.v1.ProfilerService",
    "planner": "elite.planner.v1.PlannerService",
    "trainer": "elite.trainer.v1.TrainerService",
}


def _server(
    name: str,
    module: str,
    prefix: str,
    options: StackOptions,
    ports: dict[str, int],
    environment: Mapping[str, str],
) -> ProcessSpec:
    settings = {
        f"{prefix}ADDRESS": address(ports, name),
        f"{prefix}METRICS_ADDRESS": address(ports, f"{name} metrics"),
        f"{prefix}STATE_DIRECTORY": str(options.state_directory / name),
    }
    return ProcessSpec(
        name,
        (*_PYTHON, module),
        grpc_health(address(ports, name), _FULL_NAMES[name]),
        {**environment, **settings},
    )


def _trainer_environment(options: StackOptions, valkey: ValkeyServer) -> dict[str, str]:
    return {
        "ELITE_TRAINER_REDIS_URL": valkey.url,
        "ELITE_TRAINER_RUNS_DIRECTORY": str(options.state_directory / "runs"),
        "ELITE_TRAINER_DATA_ROOTS": os.pathsep.join(map(str, options.data_roots)),
        "ELITE_TRAINER_MODEL_ROOTS": os.pathsep.join(map(str, options.model_roots)),
    }


def _worker(
    ports: dict[str, int], valkey: ValkeyServer, environment: Mapping[str, str]
) -> ProcessSpec:
    settings = {
        "ELITE_TRAINER_WORKER_METRICS_ADDRESS": address(ports, "worker metrics"),
        "ELITE_TRAINER_WORKER_PLANNER_ADDRESS": address(ports, "planner"),
        "ELITE_TRAINER_WORKER_PROFILER_ADDRESS": address(ports, "profiler"),
        "ELITE_TRAINER_WORKER_DRAIN_GRACE_SECONDS": str(DRAIN_SECONDS),
    }
    hostname = f"elite-{os.getpid()}@localhost"
    command = (
        *_PYTHON, "celery", "-A", "services.trainer.worker.app", "worker",
        "-P", "prefork", "-c", "1", "-n", hostname, "--without-gossip", "--without-mingle",
    )  # fmt: skip
    return ProcessSpec(
        "worker",
        command,
        celery_worker(valkey, hostname),
        {**environment, **settings},
        WORKER_STOP_SECONDS,
        ", which lets a run save a checkpoint first (Ctrl-C again: at once)",
    )
