"""How fast the planner is: `python -m bench.planner`.

- One call at a time: `Plan` and an empty unary call (health `Check`) take turns, so that what else
  the machine does falls on both. Server-side times are the server's own (its access log);
  client-side times include gRPC and the wire.
- Many clients at once, on several worker processes: see `bench/planner_load.py`.
- The search alone, without a server, over longer and longer ladders: `bench/planner_search.py`.

Servers are processes of their own on loopback. Writes `bench/results/planner.json`.
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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.machine import describe_machine
from bench.planner_load import CLIENTS, under_load
from bench.planner_search import search_seconds
from elite.planner.v1 import planner_pb2 as pb
from elite.planner.v1 import planner_pb2_grpc

RESULTS = Path(__file__).parent / "results" / "planner.json"
WARM_UP_CALLS = 50
START_SECONDS = 30
WORKER_PROCESSES = 2
METHODS = {"Plan": "/elite.planner.v1.PlannerService/Plan", "Check": "/grpc.health.v1.Health/Check"}
MODEL_ID, GPU_ID, HOST_MEMORY_BYTES = "qwen2.5-1.5b", "rtx-3090", 64 << 30

GOAL_SEARCH_SECONDS = 0.005
GOAL_PLANS_PER_SECOND = 300.0
GOAL_P99_SECONDS = 0.150


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description="How fast the planner is.")
    parser.add_argument("--calls", type=int, default=1000, help="of each kind, in turns")
    parser.add_argument("--load-seconds", type=float, default=20, help="of each kind, under load")
    parser.add_argument("--runs", type=int, default=200, help="of the search, per ladder")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    document = {
        "machine": describe_machine(),
        "request": f"{MODEL_ID} on {GPU_ID} with 64 GiB, eleven tiers",
        "in_turns": measure_in_turns(arguments.calls),
        "load": measure_load(arguments.load_seconds),
        "search": search_seconds(MODEL_ID, GPU_ID, HOST_MEMORY_BYTES, arguments.runs),
    }
    document["goals"] = goals(document)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    show(document)


def measure_in_turns(calls: int) -> dict[str, Any]:
    """Quantiles of both calls, one at a time, as the server and as the client saw them."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "planner.log"
        # Health checks are logged at that level.
        with running_planner(log, log_level="DEBUG") as address:
            client = client_seconds(address, calls)
        server = server_seconds(log, calls)
    return {
        "calls": calls,
        "server": {name: quantiles(samples) for name, samples in server.items()},
        "client": {name: quantiles(samples) for name, samples in client.items()},
    }


def measure_load(seconds: float) -> dict[str, Any]:
    """Rates and quantiles of both calls with many clients at once."""
    requests = {METHODS["Plan"]: plan_request().SerializeToString(), METHODS["Check"]: b""}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "planner.log"
        with running_planner(log, worker_processes=str(WORKER_PROCESSES)) as address:
            wait_for(lambda: "all workers serve" in log.read_text())
            loads = under_load(address, requests, seconds)
    figures: dict[str, Any] = {"clients": CLIENTS, "worker_processes": WORKER_PROCESSES}
    for name, path in METHODS.items():
        load = loads[path]
        figures[name] = {
            "calls": len(load.latencies_seconds),
            "per_second": len(load.latencies_seconds) / load.seconds,
            **quantiles(load.latencies_seconds),
            "client_cpu_cores": load.client_cpu_seconds / load.seconds,
        }
    return figures


@contextlib.contextmanager
def running_planner(log: Path, **settings: str) -> Iterator[str]:
    """A planner on a free port, with its log in a file, until the end of the `with`."""
    settings = {
        "address": f"127.0.0.1:{free_port()}",
        "state_directory": str(log.parent / "state"),
        "log_format": "json",
        **settings,
    }
    environment = {f"ELITE_PLANNER_{name.upper()}": value for name, value in settings.items()}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.planner"], env=os.environ | environment, stderr=file
        )
        try:
            with grpc.insecure_channel(settings["address"]) as channel:
                grpc.channel_ready_future(channel).result(timeout=START_SECONDS)
            yield settings["address"]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=START_SECONDS)


def wait_for(condition: Callable[[], bool]) -> None:
    """Returns once `condition` holds. Raises `TimeoutError`."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the planner did not start")
        time.sleep(0.05)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def plan_request() -> pb.PlanRequest:
    """What is asked all the time."""
    hypothetical = pb.HypotheticalMachine(gpu_id=GPU_ID, host_memory_bytes=HOST_MEMORY_BYTES)
    model = pb.ModelReference(model_id=MODEL_ID)
    return pb.PlanRequest(machine=pb.Machine(hypothetical=hypothetical), model=model)


def client_seconds(address: str, calls: int) -> dict[str, list[float]]:
    """Client-side seconds of `calls` plans and as many empty calls, in turns."""
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=START_SECONDS)
        planner = planner_pb2_grpc.PlannerServiceStub(channel)
        health = health_pb2_grpc.HealthStub(channel)
        request = plan_request()
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


def goals(document: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    """What is wanted, what was measured, and whether that is good enough."""
    plan = document["load"]["Plan"]
    rate, p99_seconds = plan["per_second"], plan["p99_seconds"]
    search = document["search"]["ladders"][0]["cpu_p50_seconds"]

    def at_most(goal: float, measured: float) -> dict[str, object]:
        return {"at_most": goal, "measured": measured, "met": measured <= goal}

    return {
        "search_cpu_p50_seconds": at_most(GOAL_SEARCH_SECONDS, search),
        "plans_per_second": {
            "at_least": GOAL_PLANS_PER_SECOND,
            "measured": rate,
            "met": rate >= GOAL_PLANS_PER_SECOND,
        },
        "plan_p99_seconds_under_load": at_most(GOAL_P99_SECONDS, p99_seconds),
    }


def show(document: Mapping[str, Any]) -> None:
    """Prints small tables; times in milliseconds."""
    turns, load, search = document["in_turns"], document["load"], document["search"]
    print(f"{turns['calls']} calls each, in turns      p50 ms   p99 ms")
    for side in ("server", "client"):
        for method, figures in turns[side].items():
            print(f"  {side:7}{method:24}{_milliseconds(figures, 'p50_seconds', 'p99_seconds')}")
    print(
        f"\n{load['clients']} clients, {load['worker_processes']} workers"
        "             p50 ms   p99 ms   calls/s  client cores"
    )
    for method in METHODS:
        figures = load[method]
        print(
            f"  {method:31}{_milliseconds(figures, 'p50_seconds', 'p99_seconds')}"
            f"{figures['per_second']:10.0f}{figures['client_cpu_cores']:14.2f}"
        )
    print(
        f"\nsearch alone, {search['runs']} runs"
        "         p50 ms   p90 ms   of a core: p50      p90   time for 10x tiers"
    )
    for row in search["ladders"]:
        growth = f"{row['growth']:19.1f}x" if "growth" in row else ""
        wall = _milliseconds(row, "p50_seconds", "p90_seconds")
        cpu = _milliseconds(row, "cpu_p50_seconds", "cpu_p90_seconds")
        print(f"  {row['tiers']:5} tiers{'':18}{wall}{'':9}{cpu}{growth}")
    print("\ngoals")
    for name, goal in document["goals"].items():
        kind, limit = next((key, goal[key]) for key in ("at_most", "at_least") if key in goal)
        verdict = "pass" if goal["met"] else "FAIL"
        words = kind.replace("_", " ")
        print(f"  {verdict}  {name} {words} {limit:g}: measured {goal['measured']:.4g}")


def _milliseconds(figures: Mapping[str, float], *names: str) -> str:
    return "".join(f"{1e3 * figures[name]:9.2f}" for name in names)


if __name__ == "__main__":
    main()
