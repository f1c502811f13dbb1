"""The stress test itself, in a process of its own: `python -m services.profiler.probes.run`.

Prints one JSON object a line: {"probe", "result", "completed", "total", "measured"}, where
`measured` is protobuf JSON of a `NodeProfile` with the fields this probe has filled.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from google.protobuf import json_format

from elite.profiler.v1 import profiler_pb2
from services.common.engine_process import (
    CHUNK_BLOCK_BYTES,
    available_cores,
    return_freed_memory,
)
from services.profiler.probes import compute, interconnect, launches, memory, shapes
from services.profiler.probes.contention import core_wait_share
from services.profiler.probes.passes import mean_measurements

_PROCESS_LIBRARIES = ("transformers", "peft", "bitsandbytes")
_DISK_BYTES = {False: 512 * 2**20, True: 128 * 2**20}
_REPEATS = {False: 7, True: 3}
# Over all rates, one after the other; and how often some of them are taken in each.
_PASSES = 4
_REPEATS_IN_PASS = {False: 3, True: 1}

# A probe fills measured fields of a profile and says in words what it found.
Probe = Callable[[profiler_pb2.NodeProfile], str]


class StressTest:
    """All probes of one device, in the order they run: memory first, while there is most."""

    def __init__(self, device: torch.device, fraction: float, quick: bool, scratch: Path) -> None:
        self._device, self._fraction, self._quick, self._scratch = device, fraction, quick, scratch
        self._repeats = _REPEATS[quick]
        self._passes: list[profiler_pb2.DeviceMeasurements] = []
        # Read before any library can have made a CUDA context.
        self._free_at_start = _free_by_driver() if device.type == "cuda" else 0

    def probes(self, only: list[str]) -> list[tuple[str, Probe]]:
        """Names and probes; all of them when `only` is empty."""
        return [(name, probe) for name, probe in self._all() if not only or name in only]

    def _all(self) -> list[tuple[str, Probe]]:
        return [
            ("process_overhead", self._process_overhead),
            ("runtime_overhead", self._runtime_overhead),
            ("safe_allocatable", self._safe_allocatable),
            ("attention_kernels", self._kernels),
            ("transfers", self._transfers),
            ("disk", self._disk),
            *[("rates", self._rates_in_passes)] * _PASSES,
            ("core_wait", self._core_wait),  # of all that came before
        ]

    @property
    def _where(self) -> str:
        return "on the CPU" if self._device.type == "cpu" else "on the GPU"

    def _runtime_overhead(self, profile: profiler_pb2.NodeProfile) -> str:
        if self._device.type == "cpu":
            return "none: the CPU is the device"
        compute.load_kernels(self._device)
        taken = self._free_at_start - _free_by_driver()
        # What torch still holds are the libraries' workspaces.
        workspaces = torch.cuda.memory_allocated(self._device)
        overhead = max(0, taken - torch.cuda.memory_reserved(self._device) + workspaces)
        profile.devices[0].measurements.runtime_overhead_bytes = overhead
        return (
            f"{overhead / 2**20:.0f} MiB beside tensors: the CUDA context with its kernels, and "
            f"{workspaces / 2**20:.0f} MiB of workspaces"
        )

    def _safe_allocatable(self, profile: profiler_pb2.NodeProfile) -> str:
        found = memory.safe_memory(self._device, self._fraction, self._quick)
        profile.devices[0].measurements.safe_allocatable_bytes = found.bytes
        share = "" if self._fraction == 1 else f", reaching for {self._fraction:.0%} of free memory"
        written = f"{found.written_bytes / 2**30:.2f} GiB of it allocated and written"
        return f"{found.bytes / 2**30:.2f} GiB {self._where}, {written}{share}"

    def _kernels(self, profile: profiler_pb2.NodeProfile) -> str:
        dtype = compute.sixteen_bit_dtype(self._device)
        works = []
        for name in ("flash_attn", *compute.KERNELS):
            refusal = compute.kernel_refusal(name, self._device, dtype)
            status = profiler_pb2.KERNEL_STATUS_UNAVAILABLE
            if not refusal:
                works.append(name)
                status = profiler_pb2.KERNEL_STATUS_WORKS
            profile.software.attention_kernels.add(name=name, status=status, detail=refusal)
        return f"working {self._where}: {', '.join(works)}"

    def _rates_in_passes(self, profile: profiler_pb2.NodeProfile) -> str:
        """One more pass over all rates; the last one fills in the means of all."""
        # Which results have new pages depends on the executor; what those cost is measured apart.
        return_freed_memory(CHUNK_BLOCK_BYTES)
        measured = profiler_pb2.DeviceMeasurements()
        self._measure_rates(measured)
        self._passes.append(measured)
        words = _rates_in_words(measured)
        if len(self._passes) == _PASSES:
            mean = mean_measurements(self._passes)
            profile.devices[0].measurements.CopyFrom(mean)
            slowest, fastest = mean.lowest_speed_share, mean.highest_speed_share
            words = f"{words}; passes were {slowest - 1:+.0%} to {fastest - 1:+.0%} from their mean"
        return f"pass {len(self._passes)} of {_PASSES} {self._where}: {words}"

    def _measure_rates(self, measured: profiler_pb2.DeviceMeasurements) -> None:
        device, quick = self._device, self._quick
        repeats, dtype = _REPEATS_IN_PASS[quick], compute.sixteen_bit_dtype(device)
        measured.matmul_16bit_dtype = str(dtype).removeprefix("torch.")
        measured.matmul_16bit_flops_per_second = compute.matmul_flops_per_second(
            device, dtype, repeats
        )
        measured.matmul_32bit_flops_per_second = compute.matmul_flops_per_second(
            device, torch.float32, repeats
        )
        for dtype in shapes.dtypes_of(device):
            measured.matmul_rates.extend(shapes.matmul_rates(device, dtype, quick=quick))
            measured.attention_rates.extend(shapes.attention_rates(device, dtype, quick=quick))
            measured.block_attention_rates.extend(
                shapes.attention_rates(device, dtype, quick=quick, causal=False)
            )
            measured.elementwise_rates.extend(shapes.elementwise_rates(device, dtype, quick=quick))
        measured.operation_launch_seconds = launches.operation_launch_seconds(device)
        measured.memory_bandwidth_bytes_per_second = compute.memory_bandwidth_bytes_per_second(
            device, repeats
        )

    def _transfers(self, profile: profiler_pb2.NodeProfile) -> str:
        found = []
        for to_device, way in ((True, "host_to_device"), (False, "device_to_host")):
            for pinned, kind in ((True, "pinned"), (False, "pageable")):
                rate = interconnect.transfer_bytes_per_second(
                    self._device, to_device=to_device, pinned=pinned, repeats=self._repeats
                )
                field = f"{way}_{kind}_bytes_per_second"
                setattr(profile.devices[0].measurements, field, rate)
                found.append(f"{way.replace('_', ' ')} {kind} {rate / 1e9:.1f}")
        note = " (host memory to host memory)" if self._device.type == "cpu" else ""
        return f"{', '.join(found)} GB/s{note}"

    def _disk(self, profile: profiler_pb2.NodeProfile) -> str:
        size = min(_DISK_BYTES[self._quick], shutil.disk_usage(self._scratch).free // 4)
        write, read = interconnect.disk_bytes_per_second(self._scratch, size)
        profile.host.scratch_disk.write_bytes_per_second = write
        profile.host.scratch_disk.read_bytes_per_second = read
        return f"write {write / 1e9:.2f}, read {read / 1e9:.2f} GB/s at {self._scratch}"

    def _process_overhead(self, profile: profiler_pb2.NodeProfile) -> str:
        for name in _PROCESS_LIBRARIES:
            _import_quietly(name)
        size = psutil.Process().memory_info().rss
        profile.host.process_overhead_bytes = size
        return f"{size / 2**20:.0f} MiB resident with torch, transformers and peft loaded"

    def _core_wait(self, profile: profiler_pb2.NodeProfile) -> str:
        share = core_wait_share()
        profile.devices[0].measurements.core_wait_share = share
        return f"{share:.0%} of the test's time went into waiting for cores that others had"


def _rates_in_words(measured: profiler_pb2.DeviceMeasurements) -> str:
    sixteen, full = measured.matmul_16bit_flops_per_second, measured.matmul_32bit_flops_per_second
    attention = [rate.flops_per_second / 1e12 for rate in measured.attention_rates]
    fused = f"{min(attention):.3f} to {max(attention):.3f}" if attention else "no fused kernel"
    return (
        f"products {sixteen / 1e12:.3f} TFLOP/s in {measured.matmul_16bit_dtype} and "
        f"{full / 1e12:.3f} in float32, attention {fused}, "
        f"memory {measured.memory_bandwidth_bytes_per_second / 1e9:.1f} GB/s"
    )


def _import_quietly(name: str) -> None:
    """Imports what the engine imports; one that is not installed takes no memory."""
    import importlib

    try:
        module = importlib.import_module(name)
    except ImportError:
        return
    if name == "transformers":
        _ = module.AutoModelForCausalLM, module.LlamaForCausalLM, module.AutoTokenizer


def _free_by_driver() -> int:
    """Free bytes of the one visible GPU or MIG instance: NVML needs no CUDA context to say."""
    import pynvml

    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(os.environ["CUDA_VISIBLE_DEVICES"])
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
    finally:
        pynvml.nvmlShutdown()


def run_probes(
    probes: list[tuple[str, Probe]],
) -> Iterator[dict[str, object]]:
    """Runs the probes one by one; yields what each found."""
    for completed, (name, probe) in enumerate(probes, start=1):
        profile = profiler_pb2.NodeProfile(
            devices=[profiler_pb2.Device()], host=profiler_pb2.Host()
        )
        result = probe(profile)
        yield {
            "probe": name,
            "result": result,
            "completed": completed,
            "total": len(probes),
            "measured": json_format.MessageToDict(profile),
        }


def main() -> None:
    """Runs the test the arguments ask for."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--device", required=True, choices=("cpu", "cuda"),
        help="cuda: the GPU or MIG instance whose uuid is CUDA_VISIBLE_DEVICES",
    )  # fmt: skip
    parser.add_argument("--scratch", required=True, type=Path)
    parser.add_argument("--memory-fraction", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", default=[], metavar="PROBE", help="default: all")
    arguments = parser.parse_args()
    # Libraries that print to stdout must not break the stream of results.
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _offer_to_the_out_of_memory_killer()
    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(available_cores())
    return_freed_memory()
    test = StressTest(device, arguments.memory_fraction, arguments.quick, arguments.scratch)
    for found in run_probes(test.probes(arguments.only)):
        print(json.dumps(found), file=results, flush=True)


def _offer_to_the_out_of_memory_killer() -> None:
    """Should the machine run out of memory after all, this process goes and no other."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main()
