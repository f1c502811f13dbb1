"""Many clients at once: `python -m bench.load [--soak-seconds 600]`.

A real store, API and planner as processes of their own, workers with an engine that only speaks
(tests/support/fake_engine.py). Three parts:

- *watchers*: a thousand clients watch runs (a step a second, as fast as real steps come) and
  planning goes on beside them: what every watcher was told, how late, and who was cut off.
- *submits*: clients create runs as fast as the API takes them. Every run that was acknowledged must
  be there afterwards; refusals must be errors of the catalogue.
- *soak*: a little of everything for a long time; resident memory of API and planner.

Clients and servers share the machine's cores. Writes `bench/results/load.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil

from bench.machine import describe_machine
from bench.planner import METHODS, plan_request, running_planner
from elite.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from tests.support.api_process import ApiProcess
from tests.support.run_specs import a_spec
from tests.support.trainer_stack import TrainerStack
from tests.support.valkey import Valkey

RESULTS = Path(__file__).parent / "results" / "load.json"
_WATCHED_RUNS, _PLANNERS, _SUBMITTERS = 2, 32, 16
_STEP_SECONDS = 1.0
_CHANNELS = 20
_SAMPLE_SECONDS = 5.0
# Of the soak's memory, what it may grow from its second quarter to its last.
GOAL_GROWTH = 0.05


class Site:
    """Everything that runs, in a folder."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._closing = contextlib.ExitStack()
        valkey = Valkey().start()
        self._closing.callback(valkey.close)
        self.stack = TrainerStack(folder, valkey)
        self._closing.callback(self.stack.close)
        self.api = ApiProcess(self.stack, max_concurrent_requests=4096)
        self._closing.callback(self.api.close)
        self.api.start()
        for _ in range(workers):
            self.stack.start_worker()
        planner = running_planner(folder / "planner.log")
        self.planner_address = self._closing.enter_context(planner)

    def close(self) -> None:
        """Ends everything."""
        self._closing.close()

    @property
    def planner_id(self) -> int:
        """Process id of the planner."""
        children = psutil.Process().children()
        return next(one.pid for one in children if "services.planner" in one.cmdline())

    def trainers(self) -> list[Any]:
        """Stubs over connections of their own, to be shared by clients."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            grpc.aio.insecure_channel(self.stack.address, options) for _ in range(_CHANNELS)
        ]
        return [trainer_pb2_grpc.TrainerServiceStub(channel) for channel in channels]

    def request(self, orders: str, steps: int) -> trainer_pb2.CreateRunRequest:
        """A run for the engine that only speaks."""
        return trainer_pb2.CreateRunRequest(spec=a_spec(self.stack.data, orders, steps))


async def watchers(site: Site, count: int, steps: int) -> dict[str, Any]:
    """Many of them; all must be told the same, to the end."""
    stubs = site.trainers()
    orders = f"succeed pause={_STEP_SECONDS}"
    runs = [
        (await stubs[0].CreateRun(site.request(orders, steps))).run.run_id
        for _ in range(_WATCHED_RUNS)
    ]
    planning = asyncio.create_task(_plan_until_cancelled(site))
    watching = [
        _watch(stubs[number % _CHANNELS], runs[number % _WATCHED_RUNS]) for number in range(count)
    ]
    told = await asyncio.gather(*watching)
    planning.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await planning
    by_run: dict[str, Counter[tuple[str, ...]]] = {}
    for run_id, cursors, *_ in told:
        by_run.setdefault(run_id, Counter())[cursors] += 1
    late = [seconds for _, _, lateness, _ in told for seconds in lateness]
    return {
        "watchers": count, "runs": _WATCHED_RUNS, "planning_clients": _PLANNERS,
        "events": sum(len(cursors) for _, cursors, *_ in told),
        "cut_off": dict(Counter(code for *_, code in told if code)),
        "told_otherwise": sum(sum(found.values()) - max(found.values())
                              for found in by_run.values()),
        "late_seconds": _percentiles(late),
        "plans_seconds": _percentiles(_planned),
    }  # fmt: skip


async def _watch(stub: Any, run_id: str) -> tuple[str, tuple[str, ...], list[float], str]:
    """The run, the cursors told, how late each was, and the code of what cut it off ("" if none).

    Watchers have no way to resume here: one that is cut off counts as told otherwise too.
    """
    cursors, late, cut_off = [], [], ""
    try:
        async for response in stub.WatchRun(trainer_pb2.WatchRunRequest(run_id=run_id)):
            cursors.append(response.event.cursor)
            late.append(time.time() - response.event.time.ToNanoseconds() / 1e9)
    except grpc.aio.AioRpcError as error:
        cut_off = error.code().name
    return run_id, tuple(cursors), late, cut_off


_planned: list[float] = []


async def _plan_until_cancelled(site: Site) -> None:
    request = plan_request().SerializeToString()
    async with grpc.aio.insecure_channel(site.planner_address) as channel:
        call = channel.unary_unary(METHODS["Plan"])

        async def client() -> None:
            while True:
                started = time.perf_counter()
                await call(request)
                _planned.append(time.perf_counter() - started)
                await asyncio.sleep(1.0)  # people read their plans

        await asyncio.gather(*(client() for _ in range(_PLANNERS)))


async def submits(site: Site, seconds: float) -> dict[str, Any]:
    """As many as the API takes; afterwards each that it took must be there, once."""
    stubs, taken, refused, took = site.trainers(), [], Counter[str](), []
    end = time.perf_counter() + seconds

    async def client(stub: Any) -> None:
        while (started := time.perf_counter()) < end:
            try:
                response = await stub.CreateRun(site.request("succeed", 1), timeout=30)
                taken.append(response.run.run_id)
            except grpc.aio.AioRpcError as error:
                refused[error.code().name] += 1
            took.append(time.perf_counter() - started)

    await asyncio.gather(*(client(stubs[n % _CHANNELS]) for n in range(_SUBMITTERS)))
    there = await _all_runs(stubs[0])
    return {
        "clients": _SUBMITTERS, "seconds": seconds, "taken": len(taken),
        "taken_per_second": len(taken) / seconds, "refused": dict(refused),
        "lost": len(set(taken) - there), "twice": len(taken) - len(set(taken)),
        "create_seconds": _percentiles(took),
    }  # fmt: skip


async def _all_runs(stub: Any) -> set[str]:
    found: set[str] = set()
    token = ""
    while True:
        request = trainer_pb2.ListRunsRequest(page_size=500, page_token=token)
        page = await stub.ListRuns(request)
        found.update(run.run_id for run in page.runs)
        token = page.next_page_token
        if not token:
            return found


async def soak(site: Site, seconds: float) -> dict[str, Any]:
    """Runs created, watched, listed and cancelled; plans made; memory looked at."""
    stubs = site.trainers()
    end, rows = time.monotonic() + seconds, []
    using = [asyncio.create_task(_use(site, stub)) for stub in stubs[:8]]
    using.append(asyncio.create_task(_plan_until_cancelled(site)))
    while time.monotonic() < end:
        await asyncio.sleep(_SAMPLE_SECONDS)
        rows.append((_resident_bytes(site.api.process_id), _resident_bytes(site.planner_id)))
    for task in using:
        task.cancel()
    await asyncio.gather(*using, return_exceptions=True)
    by_name = dict(zip(("api", "planner"), zip(*rows, strict=True), strict=True))
    return {"seconds": seconds, **{name: _growth(found) for name, found in by_name.items()}}


async def _use(site: Site, stub: Any) -> None:
    for number in itertools.count():
        run = (await stub.CreateRun(site.request("succeed", 1))).run
        call = stub.WatchRun(trainer_pb2.WatchRunRequest(run_id=run.run_id))
        async for _ in call:
            break
        call.cancel()
        await stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run.run_id))
        if number % 10 == 0:
            await stub.ListRuns(trainer_pb2.ListRunsRequest(page_size=50))
        await asyncio.sleep(0.2)


def _resident_bytes(process_id: int) -> int:
    """Of a process and its children, together."""
    process = psutil.Process(process_id)
    family = [process, *process.children(recursive=True)]
    return sum(int(one.memory_info().rss) for one in family)


def _growth(samples: Sequence[int]) -> dict[str, Any]:
    quarter = len(samples) // 4
    early = statistics.median(samples[quarter : 2 * quarter] or samples)
    late = statistics.median(samples[-quarter:] if quarter else samples)
    return {"early_bytes": early, "late_bytes": late, "growth": late / early - 1,
            "highest_bytes": max(samples)}  # fmt: skip


def _percentiles(samples: Sequence[float]) -> dict[str, float]:
    ordered = sorted(samples) or [0.0]
    return {
        "count": len(samples),
        "median": statistics.median(ordered),
        "p99": ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))],
        "highest": ordered[-1],
    }


def _goals(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """By name, as on the page."""
    for name, measured, limit in (
        ("watchers told otherwise", document["watchers"]["told_otherwise"], 0),
        ("watchers cut off", sum(document["watchers"]["cut_off"].values()), 0),
        ("runs lost", document["submits"]["lost"], 0),
        ("memory growth of the API", document["soak"]["api"]["growth"], GOAL_GROWTH),
        ("memory growth of the planner", document["soak"]["planner"]["growth"], GOAL_GROWTH),
    ):
        yield name, {"at_most": limit, "measured": measured, "met": measured <= limit}


async def measure(site: Site, chosen: argparse.Namespace) -> dict[str, Any]:
    """All parts, one after the other."""
    return {
        "machine": describe_machine(),
        "watchers": await watchers(site, chosen.watchers, chosen.steps),
        "soak": await soak(site, chosen.soak_seconds),
        "submits": await submits(site, chosen.submit_seconds),
    }


def main(given: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--watchers", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=150, help="of the runs that are watched")
    parser.add_argument("--submit-seconds", type=float, default=60)
    parser.add_argument("--soak-seconds", type=float, default=600)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder), workers=_WATCHED_RUNS)
        try:
            document = asyncio.run(measure(site, arguments))
        finally:
            site.close()
    document["goals"] = dict(_goals(document))
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    shown = {name: part for name, part in document.items() if name != "machine"}
    print(json.dumps(shown, indent=1))


if __name__ == "__main__":
    main()
