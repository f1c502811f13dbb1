"""How the stress test sets its process up."""

from __future__ import annotations

import subprocess
import sys

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
test = StressTest(torch.device("cpu"), 1.0, True, None)
((name, probe),) = test.probes(["matmul_shapes"])
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
