"""The profiler without its gRPC face: snapshots, and stress tests in a child process."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

import pynvml
from google.protobuf import json_format

from elite.profiler.v1 import profiler_pb2
from services.common.engine_process import LIBRARY_ENVIRONMENT
from services.common.errors import ErrorReason, ServiceError
from services.common.launch import with_parent
from services.profiler.convert import add_measurements, assemble
from services.profiler.probes.gpu import read_gpus
from services.profiler.probes.host import cpu_device, read_host
from services.profiler.probes.software import package_version, read_software
from services.profiler.settings import ProfilerSettings
from services.profiler.store import MeasurementStore

logger = logging.getLogger("elite.profiler")

_STDERR_TAIL_CHARACTERS = 2000
_CLEARING_UP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe found, in words and as the fields it measured."""

    probe: str
    result: str
    completed: int
    total: int
    measured: profiler_pb2.NodeProfile


class Profiler:
    """Reads the machine, measures it, and remembers what was measured."""

    def __init__(self, settings: ProfilerSettings, nvml: Any = pynvml) -> None:
        self._settings = settings
        self._nvml = nvml
        self._store = MeasurementStore(settings.state_directory)
        self._software = read_software()
        self._torch_version = package_version("torch")
        self._measuring = asyncio.Lock()
        self._is_testing = False
        self._driver_lock = threading.Lock()
        self._holds_driver = False

    def snapshot(self) -> profiler_pb2.NodeProfile:
        """The machine now, with the newest stored measurements. Takes milliseconds and blocks.

        Raises `ServiceError` when the scratch directory or the GPU driver cannot be used.
        """
        host = read_host(self._settings.usable_scratch_directory())
        devices = self._read_gpus() or [cpu_device(host)]
        node_name = self._settings.node_name or socket.gethostname()
        profile = assemble(node_name, devices, host, self._software)
        for index, device in enumerate(profile.devices):
            stored = self._store.load(device, self._torch_version)
            if stored is not None:
                add_measurements(profile, index, stored)
        return profile

    def _read_gpus(self) -> list[profiler_pb2.Device]:
        """Keeps the driver open from the first GPU seen until it fails.

        NVML counts its users. Without one between two snapshots a driver that is not in
        persistence mode shuts the GPU down, and takes seconds to start it for the next.
        """
        with self._driver_lock:
            try:
                devices = read_gpus(self._nvml)
            except ServiceError:
                self._release_driver()
                raise
            if devices and not self._holds_driver:
                self._nvml.nvmlInit()
                self._holds_driver = True
            return devices

    def _release_driver(self) -> None:
        if self._holds_driver:
            self._holds_driver = False
            with suppress(self._nvml.NVMLError):  # it may be the very thing that is broken
                self._nvml.nvmlShutdown()

    async def close(self) -> None:
        """Waits until a test that was cut off has cleared up, then lets the driver go."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._measuring.acquire(), _CLEARING_UP_SECONDS)
        with self._driver_lock:
            self._release_driver()

    async def stress_test(
        self, *, memory_fraction: float, quick: bool
    ) -> AsyncGenerator[ProbeResult, None]:
        """Measures every device, one after another; yields as probes end, then stores.

        Closing the iterator ends the child process. Raises `ServiceError`: BUSY while another test
        runs, PRECONDITION_FAILED when the installed torch cannot use the device or the results
        cannot be kept, DEVICE_ERROR when a probe fails.
        """
        if self._is_testing:
            raise ServiceError(ErrorReason.BUSY, "a stress test is running: wait for it to end")
        self._is_testing = True
        try:
            measurements = self._measure(memory_fraction, quick, kernels_only=False)
            async with aclosing(measurements):
                async for result in measurements:
                    yield result
        finally:
            self._is_testing = False

    async def _measure(
        self, fraction: float, quick: bool, *, kernels_only: bool
    ) -> AsyncGenerator[ProbeResult, None]:
        """One child at a time: a test waits for the short probe of kernels at the start."""
        async with self._measuring:
            profile = await asyncio.to_thread(self.snapshot)
            self._require_torch(profile)
            for position, device in enumerate(profile.devices):
                arguments = self._arguments(device, fraction, quick, kernels_only)
                measured = profiler_pb2.NodeProfile()
                is_gpu = device.kind == profiler_pb2.DEVICE_KIND_CUDA
                child = _run_child(arguments, visible_gpu=device.uuid if is_gpu else "")
                async with aclosing(child) as results:
                    async for result in results:
                        measured.MergeFrom(_without_empty_device(result.measured, measured))
                        yield _counted(result, position, len(profile.devices))
                await asyncio.to_thread(self._remember, device, measured, kernels_only)

    def _require_torch(self, profile: profiler_pb2.NodeProfile) -> None:
        has_gpu = profile.devices[0].kind == profiler_pb2.DEVICE_KIND_CUDA
        if not self._torch_version:
            problem, fix = "torch is not installed", "install the extra 'engine'"
        elif has_gpu and not profile.software.torch_cuda_version:
            problem = f"torch {self._torch_version} cannot use the GPU"
            fix = "install a build of torch for CUDA"
        else:
            return
        message = f"nothing can be measured: {problem}: {fix}"
        raise ServiceError(ErrorReason.PRECONDITION_FAILED, message)

    def _remember(
        self, device: profiler_pb2.Device, measured: profiler_pb2.NodeProfile, kernels_only: bool
    ) -> None:
        if kernels_only:
            earlier = self._store.load(device, self._torch_version)
            if earlier is not None:
                earlier.software.CopyFrom(measured.software)
                measured = earlier
        else:
            figures = measured.devices[0].measurements
            figures.source = profiler_pb2.MEASUREMENT_SOURCE_STRESS_TEST
            figures.measured_at.GetCurrentTime()
            measured.host.scratch_disk.path = str(self._settings.usable_scratch_directory())
        try:
            self._store.save(device, self._torch_version, measured)
        except OSError as error:
            fix = "set ELITE_PROFILER_STATE_DIRECTORY to a directory this user can write"
            message = f"measurements cannot be kept ({error}): {fix}"
            raise ServiceError(ErrorReason.PRECONDITION_FAILED, message) from error

    def _arguments(
        self, device: profiler_pb2.Device, fraction: float, quick: bool, kernels_only: bool
    ) -> list[str]:
        is_cpu = device.kind == profiler_pb2.DEVICE_KIND_CPU
        arguments = ["--device", "cpu" if is_cpu else "cuda"]
        arguments += ["--scratch", str(self._settings.usable_scratch_directory())]
        arguments += ["--memory-fraction", str(fraction or 1.0)]
        arguments += ["--quick"] if quick else []
        return [*arguments, "--only", "attention_kernels"] if kernels_only else arguments

    async def probe_kernels_if_unknown(self) -> None:
        """Finds out which attention kernels work, unless that is stored already."""
        await asyncio.sleep(self._settings.kernel_probe_delay_seconds)
        try:
            profile = await asyncio.to_thread(self.snapshot)
            if profile.software.attention_kernels or self._is_testing:
                return
            async with aclosing(self._measure(1, quick=True, kernels_only=True)) as results:
                async for _ in results:
                    pass
        except ServiceError as error:
            logger.warning("attention kernels not probed", extra={"error": error.message})


def _without_empty_device(
    found: profiler_pb2.NodeProfile, so_far: profiler_pb2.NodeProfile
) -> profiler_pb2.NodeProfile:
    """Repeated fields append when merged: the one device is merged here instead."""
    if so_far.devices:
        so_far.devices[0].MergeFrom(found.devices[0])
        found.ClearField("devices")
    return found


def _counted(result: ProbeResult, position: int, devices: int) -> ProbeResult:
    """Counts over all devices."""
    completed = position * result.total + result.completed
    return ProbeResult(
        result.probe, result.result, completed, result.total * devices, result.measured
    )


async def _run_child(arguments: list[str], visible_gpu: str) -> AsyncGenerator[ProbeResult, None]:
    """Runs the probes in a session of their own; ends them when the caller stops listening.

    The child sees one GPU, by its uuid: CUDA's numbering is not NVML's, and a MIG instance has no
    number at all.
    """
    child = await asyncio.create_subprocess_exec(
        *with_parent([sys.executable, "-m", "services.profiler.probes.run", *arguments]),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        start_new_session=True, limit=2**20,
        env={**LIBRARY_ENVIRONMENT, **os.environ, "CUDA_VISIBLE_DEVICES": visible_gpu},
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stderr is not None
    errors = asyncio.create_task(child.stderr.read())
    try:
        async for line in child.stdout:
            yield _parsed(line)
        status = await child.wait()
        if status != 0:
            raise _probe_failed(status, (await errors).decode(errors="replace"))
    finally:
        _kill_group(child)
        await asyncio.gather(child.stdout.read(), errors, child.wait())  # closes the pipes


def _parsed(line: bytes) -> ProbeResult:
    found = json.loads(line)
    measured = json_format.ParseDict(found["measured"], profiler_pb2.NodeProfile())
    return ProbeResult(
        found["probe"], found["result"], found["completed"], found["total"], measured
    )


def _probe_failed(status: int, errors: str) -> ServiceError:
    """Status is the child's: negative for the signal that killed it."""
    logger.error("a probe failed", extra={"stderr": errors[-_STDERR_TAIL_CHARACTERS:]})
    if status == -signal.SIGKILL:
        cause, fix = "killed by the kernel", "memory ran out: end other programs and try again"
    elif status < 0:
        cause, fix = f"killed by signal {-status}", "see the kernel's log (dmesg)"
    else:
        cause = (errors.strip().splitlines() or [f"status {status}"])[-1]
        fix = "see the service's log"
    message = f"the stress test ended early ({cause}): {fix}"
    return ServiceError(ErrorReason.DEVICE_ERROR, message)


def _kill_group(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
