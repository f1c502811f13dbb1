"""How the stress test sets its process up."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from google.protobuf import json_format

from elite.profiler.v1 import profiler_pb2
from services.profiler.probes import compute, launches, run, shapes
from services.profiler.probes.run import StressTest, run_probes

_PROGRAM = """
import resource, torch
from elite.profiler.v1 import profiler_pb2
from services.common.engine_process import return_freed_memory
from services.profiler.probes.run import StressTest
return_freed_memory()
faults = []
def products(device, dtype, quick):
    left = torch.randn(2048, 64)
    for _ in range(30):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        left @ left.T[:, :1024]
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return [profiler_pb2.MatmulRate(flops_per_second=1.0)]
from services.profiler.probes import run
run.shapes.matmul_rates = products
run.shapes.attention_rates = run.shapes.elementwise_rates = lambda *_, **__: []
test = StressTest(torch.device("cpu"), 1.0, True, None)
name, probe = test.probes(["rates"])[0]
probe(profiler_pb2.NodeProfile(devices=[profiler_pb2.Device()]))
print(sum(faults[20:30]), 2048 * 1024 * 4 // resource.getpagesize())
"""


def test_rates_are_of_memory_that_is_there() -> None:
    """A product whose result is given back each time would be timed with its pages."""
    answer = subprocess.run(
        [sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True
    )
    faults, pages = map(int, answer.stdout.split())
    # Of ten products, after the allocator has found its places.
    assert faults < pages


def test_rates_are_means_of_passes_that_others_come_between(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The machine is half as fast in every second pass."""
    turns = itertools.cycle((2.0, 2.0, 1.0, 1.0))  # two dtypes a pass

    def products(_: object, dtype: object, **__: object) -> Iterator[profiler_pb2.MatmulRate]:
        yield profiler_pb2.MatmulRate(rows=1, dtype=str(dtype), flops_per_second=next(turns))

    monkeypatch.setattr(shapes, "matmul_rates", products)
    for name in ("attention_rates", "elementwise_rates"):
        monkeypatch.setattr(shapes, name, lambda *_, **__: [])
    monkeypatch.setattr(compute, "matmul_flops_per_second", lambda *_: 5e9)
    monkeypatch.setattr(compute, "memory_bandwidth_bytes_per_second", lambda *_: 1e9)
    monkeypatch.setattr(launches, "operation_launch_seconds", lambda *_: 1e-6)
    monkeypatch.setattr(run, "return_freed_memory", lambda *_: None)
    test = StressTest(torch.device("cpu"), 1.0, True, tmp_path)
    found = list(run_probes(test.probes(["rates", "core_wait"])))
    assert [message["probe"] for message in found] == ["rates"] * 4 + ["core_wait"]
    assert all("matmulRates" not in str(message["measured"]) for message in found[:3])
    assert str(found[3]["result"]).endswith("passes were -25% to +50% from their mean")
    measured = json_format.ParseDict(found[3]["measured"], profiler_pb2.NodeProfile())
    of_device = measured.devices[0].measurements
    assert [rate.flops_per_second for rate in of_device.matmul_rates] == [pytest.approx(4 / 3)] * 2
    assert of_device.lowest_speed_share == pytest.approx(0.75)
    assert of_device.highest_speed_share == pytest.approx(1.5)
    assert of_device.matmul_16bit_flops_per_second == pytest.approx(5e9)
