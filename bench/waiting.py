"""How long threads wait awake between operations: `python -m bench.waiting`.

A streaming step on the CPU, alone and beside a process that keeps all cores busy, by how OpenMP's
threads wait: as torch has it (awake for some milliseconds), asleep, and as the engine has it.
All are measured in turns, each in a process of its own. Writes `bench/results/waiting.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench import speed, speed_worker
from bench.machine import describe_machine
from elite.planner.v1 import planner_pb2
from services.common.engine_process import LIBRARY_ENVIRONMENT
from services.planner.machine import ComputeDtype, DeviceKind

RESULTS = Path(__file__).parent / "results" / "waiting.json"
ENGINE = "a tenth of a millisecond or two (the engine)"
_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
POLICIES: Mapping[str, Mapping[str, str]] = {
    "as torch has it": {},
    "not at all": {"OMP_WAIT_POLICY": "PASSIVE"},
    ENGINE: {name: LIBRARY_ENVIRONMENT[name] for name in _VARIABLES},
}
PLACES = ("alone", "beside a busy process")
_CHUNK_TOKENS = 2048
_BUSY = "import torch\na = torch.randn(1024, 1024)\nwhile True:\n    a @ a\n"
# Until it has loaded its libraries.
_BUSY_SECONDS = 5.0


def measure(model: str, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds of a step by policy and place; rounds in turns, after one step to warm up."""
    subject = speed.Subject.of(model)
    setting = speed.Setting(
        ComputeDtype.FLOAT32, DeviceKind.CPU, 2**34, rounds, chunk_tokens=_CHUNK_TOKENS
    )
    plan = speed.plan_for(subject, tokens, setting)
    pools = {name: _pool(dict(policy)) for name, policy in POLICIES.items()}
    samples: dict[tuple[str, str], list[float]] = {}
    try:
        for pool in pools.values():
            pool.submit(_load, subject.key, subject.config, plan).result()
        for place in PLACES:
            with _busy(place != PLACES[0]):
                for _ in range(rounds):
                    for name, pool in pools.items():
                        step = pool.submit(speed_worker.time_step, subject.key, plan).result()
                        samples.setdefault((name, place), []).append(step.seconds)
    finally:
        for pool in pools.values():
            pool.shutdown()
    return [
        {"policy": name, "place": place, "seconds": statistics.median(found), "samples": found}
        for (name, place), found in samples.items()
    ]


def _pool(policy: dict[str, str]) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), _start, (policy,))


def _start(policy: dict[str, str]) -> None:
    """The engine's process, but for how its threads wait."""
    os.environ.update(LIBRARY_ENVIRONMENT)
    for name in _VARIABLES:
        del os.environ[name]
    os.environ.update(policy)
    from bench import steps  # loads torch, which reads the environment once

    steps.set_up_process(streaming=True)


def _load(name: str, config: Mapping[str, Any], plan: planner_pb2.Plan) -> None:
    """Makes the model and what the plan's window takes, and runs a step."""
    speed_worker.load(name, speed_worker.STREAMING, config, plan)
    speed_worker.weigh(name, plan)


@contextmanager
def _busy(is_busy: bool) -> Iterator[None]:
    """Inside, another process keeps all cores busy."""
    if not is_busy:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", _BUSY]) as process:
        try:
            time.sleep(_BUSY_SECONDS)
            yield
        finally:
            process.kill()


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama-8x256")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    cases = measure(options.model, options.tokens, options.rounds)
    for case in cases:
        print(f"{case['policy']:32} {case['place']:24} {case['seconds']:7.2f} s")
    document = {
        "machine": describe_machine(), "model": options.model, "tokens": options.tokens,
        "rounds": options.rounds, "cases": cases,
    }  # fmt: skip
    options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
