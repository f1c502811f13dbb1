"""How long a plan takes: `python -m bench.planner`, a real server beside an empty call.

The server is a process of its own on loopback. `Plan` and an empty unary call (health `Check`) take
turns in the same run, so that what else the machine does falls on both. Server-side times are the
server's own (its access log); client-side times include gRPC and the wire. Writes
`bench/results/planner.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.machine import describe_machine
from elite.planner.v1 import planner_pb2 as pb
from elite.planner.v1 import planner_pb2_grpc

RESULTS = Path(__file__).parent / "results" / "planner.json"
WARM_UP_CALLS = 50
START_SECONDS = 30
METHODS = {"Plan": "/elite.planner.v1.PlannerService/Plan", "Check": "/grpc.health.v1.Health/Check"}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "planner.log"
        with running_planner(Path(folder), log) as address:
            client = measure(address, arguments.calls)
        server = server_seconds(log, arguments.calls)
    document = {
        "machine": describe_machine(),
        "calls": arguments.calls,
        "request": "qwen2.5-1.5b on rtx-3090 with 64 GiB, eleven tiers",
        "server": {name: quantiles(samples) for name, samples in server.items()},
        "client": {name: quantiles(samples) for name, samples in client.items()},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    show(document)


@contextlib.contextmanager
def running_planner(folder: Path, log: Path) -> Iterator[str]:
    """A planner process on a free port, until the end of the `with`."""
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {
        "ELITE_PLANNER_ADDRESS": address,
        "ELITE_PLANNER_STATE_DIRECTORY": str(folder / "state"),
        "ELITE_PLANNER_LOG_LEVEL": "DEBUG",  # health checks are logged at that level
        "ELITE_PLANNER_LOG_FORMAT": "json",
    }
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.planner"], env=environment, stderr=file
        )
        try:
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=START_SECONDS)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def measure(address: str, calls: int) -> dict[str, list[float]]:
    """Client-side seconds of `calls` plans and as many empty calls, in turns."""
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=START_SECONDS)
        planner = planner_pb2_grpc.PlannerServiceStub(channel)
        health = health_pb2_grpc.HealthStub(channel)
        request = pb.PlanRequest(
            machine=pb.Machine(
                hypothetical=pb.HypotheticalMachine(gpu_id="rtx-3090", host_memory_bytes=64 << 30)
            ),
            model=pb.ModelReference(model_id="qwen2.5-1.5b"),
        )
        turns: dict[str, Callable[[], object]] = {
            "Plan": lambda: planner.Plan(request),
            "Check": lambda: health.Check(health_pb2.HealthCheckRequest()),
        }
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        for call in range(WARM_UP_CALLS + calls):
            for name, run in turns.items():
                started = time.perf_counter()
                run()
                if call >= WARM_UP_CALLS:
                    seconds[name].append(time.perf_counter() - started)
        return seconds


def server_seconds(log: Path, calls: int) -> dict[str, list[float]]:
    """Seconds of the last `calls` calls of each method, as the server logged them."""
    by_path: dict[str, list[float]] = {path: [] for path in METHODS.values()}
    for line in log.read_text().splitlines():
        entry = json.loads(line) if line.startswith("{") else {}
        if entry.get("message") == "call" and entry.get("method") in by_path:
            by_path[entry["method"]].append(entry["seconds"])
    return {name: by_path[path][-calls:] for name, path in METHODS.items()}


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile, in seconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50_seconds": statistics.median(seconds), "p99_seconds": cuts[98]}


def show(document: dict[str, object]) -> None:
    """Prints a small table, in milliseconds."""
    print(f"{document['calls']} calls each, in turns; milliseconds")
    print(f"{'':8} {'':6} {'p50':>8} {'p99':>8}")
    for side in ("server", "client"):
        for method, figures in document[side].items():  # type: ignore[attr-defined]
            p50, p99 = (1e3 * figures[f"p{n}_seconds"] for n in (50, 99))
            print(f"{side:8} {method:6} {p50:8.2f} {p99:8.2f}")


if __name__ == "__main__":
    main()
