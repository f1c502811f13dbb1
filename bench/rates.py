"""The stress test's rates of this machine's CPU, measured in a process of its own, and their drift.

Only what predicts times is measured: no disk, no large allocations.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from google.protobuf import json_format

from elite.profiler.v1 import profiler_pb2
from services.common.engine_process import LIBRARY_ENVIRONMENT
from services.planner.rates import Rates
from services.profiler.convert import add_measurements, assemble
from services.profiler.probes.host import cpu_device, read_host
from services.profiler.probes.passes import mean_measurements
from services.profiler.probes.software import read_software

_MEMORY_FRACTION = 0.02
_PROBES = ("safe_allocatable", "attention_kernels", "rates")


def measured_profile(*, quick: bool) -> profiler_pb2.NodeProfile:
    """The CPU of this machine as a profile with its rates measured now.

    Raises `subprocess.CalledProcessError` when a probe fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        host = read_host(Path(scratch))
        profile = assemble("bench", [cpu_device(host)], host, read_software())
        add_measurements(profile, 0, _run_probes(Path(scratch), quick))
    return profile


def computes_in_16_bits(rates: Rates) -> bool:
    """Whether products in 16 bits are faster than in 32: some CPUs only emulate them."""
    sixteen_bit, full = rates.of(2), rates.of(4)
    return bool(sixteen_bit and not (full and full.matmul.best >= sixteen_bit.matmul.best))


def _run_probes(scratch: Path, quick: bool) -> profiler_pb2.NodeProfile:
    command = [sys.executable, "-m", "services.profiler.probes.run", "--device", "cpu"]
    command += ["--scratch", str(scratch), "--memory-fraction", str(_MEMORY_FRACTION)]
    command += [*(["--quick"] if quick else []), "--only", *_PROBES]
    environment = {**LIBRARY_ENVIRONMENT, **os.environ, "CUDA_VISIBLE_DEVICES": ""}
    answer = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True, text=True)
    measured = profiler_pb2.NodeProfile(devices=[profiler_pb2.Device()])
    for line in answer.stdout.splitlines():
        found = json_format.ParseDict(json.loads(line)["measured"], profiler_pb2.NodeProfile())
        measured.devices[0].MergeFrom(found.devices[0])
        found.ClearField("devices")
        measured.MergeFrom(found)
    return measured


def rates_of(profile: profiler_pb2.NodeProfile) -> dict[str, float]:
    """FLOP/s and bytes/s by what they are of; the first word is the kind."""
    measured = profile.devices[0].measurements
    rates = {
        f"matmul {rate.dtype} {rate.rows}x{rate.inner}x{rate.outer}": rate.flops_per_second
        for rate in measured.matmul_rates
    }
    for kind, found in (
        ("attention", measured.attention_rates), ("block", measured.block_attention_rates),
    ):  # fmt: skip
        for rate in found:
            shape = f"{rate.dtype} head {rate.head_size} tokens {rate.sequence_tokens}"
            rates[f"{kind} forward {shape}"] = rate.forward_flops_per_second
            rates[f"{kind} backward {shape}"] = rate.backward_flops_per_second
    for element in measured.elementwise_rates:
        memory = "new" if element.new_pages else "there"
        shape = f"{element.dtype} {element.tensor_bytes} bytes {memory}"
        rates[f"elementwise {shape}"] = element.bytes_per_second
    if measured.operation_launch_seconds:
        rates["operations asked for"] = 1 / measured.operation_launch_seconds
    rates["memory bandwidth"] = measured.memory_bandwidth_bytes_per_second
    return rates


def mean_profile(profiles: Sequence[profiler_pb2.NodeProfile]) -> profiler_pb2.NodeProfile:
    """The first profile with the rates that the machine had on the whole: harmonic means."""
    found = profiler_pb2.NodeProfile()
    found.CopyFrom(profiles[0])
    measured = mean_measurements([profile.devices[0].measurements for profile in profiles])
    found.devices[0].measurements.CopyFrom(measured)
    return found


def drift(
    mean: Mapping[str, float], measured: Iterable[Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Rates over their means, by kind: lowest, median and highest of those that have a mean."""
    ratios: dict[str, list[float]] = {}
    for rates in measured:
        for name in mean.keys() & rates.keys():
            if mean[name] > 0:
                ratios.setdefault(name.split()[0], []).append(rates[name] / mean[name])
    return {
        kind: {"lowest": min(all_), "median": statistics.median(all_), "highest": max(all_)}
        for kind, all_ in sorted(ratios.items())
    }
