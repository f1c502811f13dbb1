"""The profiler as its callers meet it: real server, real probes, this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from elite.profiler.v1 import profiler_pb2, profiler_pb2_grpc
from services.common.local import serve_locally
from services.common.validation import validate
from services.profiler.servicer import FULL_NAME, profiler_service
from services.profiler.settings import ProfilerSettings


@pytest.fixture
def settings(tmp_path: Path) -> ProfilerSettings:
    return ProfilerSettings(
        address="127.0.0.1:0", state_directory=tmp_path, kernel_probe_delay_seconds=3600
    )


@pytest.fixture
def address(settings: ProfilerSettings) -> Iterator[str]:
    with serve_locally(profiler_service(settings), settings) as served:
        yield served


@pytest.fixture
def profiler(address: str) -> Iterator[profiler_pb2_grpc.ProfilerServiceStub]:
    with grpc.insecure_channel(address) as channel:
        yield profiler_pb2_grpc.ProfilerServiceStub(channel)


def probes_running() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie is one too
            if "services.profiler.probes.run" in child.cmdline():
                found.append(child)
    return found


def wait_until(condition: object, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def starts_again(
    stub: profiler_pb2_grpc.ProfilerServiceStub, request: profiler_pb2.RunStressTestRequest
) -> bool:
    """Whether another test may run; it is ended after its first probe."""
    stream = stub.RunStressTest(request, timeout=120)
    try:
        return bool(next(stream).completed_probes == 1)
    except grpc.RpcError:
        return False
    finally:
        stream.cancel()


def health_of(channel: grpc.Channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status


def get_profile(stub: profiler_pb2_grpc.ProfilerServiceStub) -> profiler_pb2.NodeProfile:
    return stub.GetProfile(profiler_pb2.GetProfileRequest(), timeout=10).profile


def test_snapshot_describes_this_machine(
    profiler: profiler_pb2_grpc.ProfilerServiceStub, settings: ProfilerSettings
) -> None:
    profile = get_profile(profiler)
    assert profile.devices
    device, host = profile.devices[0], profile.host
    assert 0 < device.memory_free_bytes <= device.memory_total_bytes
    if device.kind == profiler_pb2.DEVICE_KIND_CPU:
        assert device.memory_is_host_memory
        assert device.memory_total_bytes == host.memory_total_bytes
    assert host.logical_core_count >= 1
    assert Path(host.scratch_disk.path).is_relative_to(settings.state_directory)
    assert 0 < host.scratch_disk.free_bytes <= host.scratch_disk.total_bytes
    assert "torch" in {package.name for package in profile.software.packages}
    assert not device.HasField("measurements")


def assert_rates_cover_dtypes_and_shapes(measured: profiler_pb2.DeviceMeasurements) -> None:
    """Two dtypes, wide and thin products, two head sizes, both directions of attention."""
    dtypes = {measured.matmul_16bit_dtype, "float32"}
    attention = measured.attention_rates, measured.block_attention_rates
    for rates in (measured.matmul_rates, *attention, measured.elementwise_rates):
        assert {rate.dtype for rate in rates} == dtypes
    for dtype in dtypes:
        products = [rate for rate in measured.matmul_rates if rate.dtype == dtype]
        narrow = [min(rate.rows, rate.inner, rate.outer) == 16 for rate in products]
        # An adapter's three, on a CPU one of them with few rows too.
        assert narrow.count(True) in (3, 4)
        # What would take too long is left out, as on CPUs that only emulate 16 bits.
        assert narrow.count(False) >= (5 if dtype == "float32" else 1)
        tensors = {r.tensor_bytes for r in measured.elementwise_rates if r.dtype == dtype}
        assert len(tensors) >= 5
        heads = [rate.head_size for rate in measured.attention_rates if rate.dtype == dtype]
        assert heads == [64, 64, 128, 128]
        heads = [rate.head_size for rate in measured.block_attention_rates if rate.dtype == dtype]
        assert heads == [64] * 4 + [128] * 4
    assert all(rate.flops_per_second > 0 for rate in measured.matmul_rates)
    for rate in (*attention[0], *attention[1]):
        directions = sorted((rate.forward_flops_per_second, rate.backward_flops_per_second))
        assert 0 < directions[0] <= rate.flops_per_second <= directions[1]


# What is 0 on a CPU.
OF_A_GPU = ("runtime_overhead_bytes", "operation_launch_seconds")


def test_stress_test_fills_the_measured_fields_and_is_remembered(
    profiler: profiler_pb2_grpc.ProfilerServiceStub, settings: ProfilerSettings
) -> None:
    request = profiler_pb2.RunStressTestRequest(memory_fraction=0.02, quick=True)
    messages = list(profiler.RunStressTest(request, timeout=120))
    total = messages[-1].total_probes
    assert [message.completed_probes for message in messages] == list(range(1, total + 1))
    assert all(message.result for message in messages)
    assert not any(message.HasField("profile") for message in messages[:-1])
    profile = messages[-1].profile
    measured = profile.devices[0].measurements
    assert measured.source == profiler_pb2.MEASUREMENT_SOURCE_STRESS_TEST
    unfilled = [
        field.name
        for field in measured.DESCRIPTOR.fields
        if field.name not in OF_A_GPU and not getattr(measured, field.name)
    ]
    assert unfilled == []
    assert measured.safe_allocatable_bytes <= 0.05 * profile.devices[0].memory_total_bytes
    assert_rates_cover_dtypes_and_shapes(measured)
    validate(profile)
    assert profile.host.process_overhead_bytes > 2**26
    assert profile.host.scratch_disk.read_bytes_per_second > 0
    kernels = {kernel.name: kernel.status for kernel in profile.software.attention_kernels}
    assert kernels["sdpa_math"] == profiler_pb2.KERNEL_STATUS_WORKS

    again = ProfilerSettings(**settings.model_dump())
    with (
        serve_locally(profiler_service(again), again) as served,
        grpc.insecure_channel(served) as channel,
    ):
        remembered = get_profile(profiler_pb2_grpc.ProfilerServiceStub(channel))
    assert remembered.devices[0].measurements == measured
    assert list((settings.state_directory / "scratch").iterdir()) == []


def test_one_test_at_a_time_and_leaving_ends_the_child(
    profiler: profiler_pb2_grpc.ProfilerServiceStub,
) -> None:
    request = profiler_pb2.RunStressTestRequest(memory_fraction=0.02, quick=True)
    first = profiler.RunStressTest(request, timeout=120)
    assert wait_until(probes_running)
    with pytest.raises(grpc.RpcError) as refused:
        next(profiler.RunStressTest(request, timeout=10))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "wait" in refused.value.details()
    first.cancel()
    assert wait_until(lambda: not probes_running()), "the probes outlived their caller"
    assert wait_until(lambda: starts_again(profiler, request)), "the next test is refused"
    assert wait_until(lambda: not probes_running())


def test_nothing_is_left_on_the_disk_by_a_test_that_is_cut_off(
    profiler: profiler_pb2_grpc.ProfilerServiceStub, settings: ProfilerSettings
) -> None:
    request = profiler_pb2.RunStressTestRequest(memory_fraction=0.02, quick=True)
    stream = profiler.RunStressTest(request, timeout=120)
    while next(stream).probe != "transfers":
        pass
    stream.cancel()  # in the middle of the disk probe
    assert wait_until(lambda: not probes_running())
    assert list((settings.state_directory / "scratch").iterdir()) == []
    assert not list(settings.state_directory.glob("measurements/*"))


def test_kernels_are_probed_in_the_background_and_a_test_waits_for_them(tmp_path: Path) -> None:
    settings = ProfilerSettings(
        address="127.0.0.1:0", state_directory=tmp_path, kernel_probe_delay_seconds=0
    )
    with (
        serve_locally(profiler_service(settings), settings) as served,
        grpc.insecure_channel(served) as channel,
    ):
        stub = profiler_pb2_grpc.ProfilerServiceStub(channel)
        assert wait_until(probes_running), "no probe was started"
        request = profiler_pb2.RunStressTestRequest(memory_fraction=0.02, quick=True)
        stream = stub.RunStressTest(request, timeout=120)
        assert next(stream).completed_probes == 1  # and not BUSY
        kernels = get_profile(stub).software.attention_kernels
        stream.cancel()
    works = {kernel.name for kernel in kernels if kernel.status == 1}
    refused = {kernel.name: kernel.detail for kernel in kernels if kernel.status == 2}
    assert "sdpa_math" in works
    assert works.isdisjoint(refused)
    assert all(refused.values())
    assert wait_until(lambda: not probes_running()), "a probe outlived the service"


def test_stopping_ends_the_background_probe(tmp_path: Path) -> None:
    settings = ProfilerSettings(
        address="127.0.0.1:0", state_directory=tmp_path, kernel_probe_delay_seconds=0
    )
    with serve_locally(profiler_service(settings), settings):
        assert wait_until(probes_running)
    assert not probes_running()


def test_health_follows_the_scratch_directory(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    settings = ProfilerSettings(
        address="127.0.0.1:0",
        state_directory=tmp_path,
        scratch_directory=scratch,
        kernel_probe_delay_seconds=0,
    )
    serving = health_pb2.HealthCheckResponse.SERVING
    not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
    with (
        serve_locally(profiler_service(settings), settings) as served,
        grpc.insecure_channel(served) as channel,
    ):
        assert health_of(channel, FULL_NAME) == serving
        scratch.rmdir()
        assert wait_until(lambda: health_of(channel, FULL_NAME) == not_serving)
        scratch.mkdir()
        assert wait_until(lambda: health_of(channel, FULL_NAME) == serving)


def test_capacity_is_watched_at_the_interval(
    profiler: profiler_pb2_grpc.ProfilerServiceStub,
) -> None:
    stream = profiler.WatchCapacity(
        profiler_pb2.WatchCapacityRequest(interval_seconds=0.1), timeout=10
    )
    first, second = next(stream), next(stream)
    stream.cancel()
    assert second.captured_at.ToNanoseconds() - first.captured_at.ToNanoseconds() >= 10**8
    assert first.devices[0].memory_total_bytes > 0
    with pytest.raises(grpc.RpcError) as refused:
        next(profiler.WatchCapacity(profiler_pb2.WatchCapacityRequest(), timeout=10))
    assert "interval_seconds" in refused.value.details()


def test_unusable_scratch_directory_names_the_setting(tmp_path: Path) -> None:
    settings = ProfilerSettings(
        address="127.0.0.1:0",
        state_directory=tmp_path,
        scratch_directory=tmp_path / "absent",
        kernel_probe_delay_seconds=0,  # the background probe meets the same error
    )
    with (
        serve_locally(profiler_service(settings), settings) as served,
        grpc.insecure_channel(served) as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        get_profile(profiler_pb2_grpc.ProfilerServiceStub(channel))
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "ELITE_PROFILER_SCRATCH_DIRECTORY" in refused.value.details()


def test_a_foreign_client_needs_no_stubs(address: str) -> None:
    grpcurl = str(Path(sys.executable).with_name("grpcurl"))
    call = "elite.profiler.v1.ProfilerService/GetProfile"
    answer = subprocess.run(
        [grpcurl, "-plaintext", address, call], capture_output=True, text=True, timeout=30
    )
    assert answer.returncode == 0, answer.stderr
    host = json.loads(answer.stdout)["profile"]["host"]
    # Older grpcurls print proto names instead of JSON names.
    assert int(host.get("memoryTotalBytes") or host["memory_total_bytes"]) > 0
    listing = subprocess.run(
        [grpcurl, "-plaintext", address, "list"], capture_output=True, text=True, timeout=30
    )
    assert "elite.profiler.v1.ProfilerService" in listing.stdout.split()
    described = subprocess.run(
        [grpcurl, "-plaintext", address, "describe", "elite.profiler.v1.ProfilerService"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert "stream .elite.profiler.v1.RunStressTestResponse" in described.stdout


def test_the_process_serves_metrics_and_leaves_no_child(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        metrics = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {
        **os.environ,
        "ELITE_PROFILER_ADDRESS": f"unix:{tmp_path}/profiler.sock",
        "ELITE_PROFILER_METRICS_ADDRESS": metrics,
        "ELITE_PROFILER_STATE_DIRECTORY": str(tmp_path),
        "ELITE_PROFILER_KERNEL_PROBE_DELAY_SECONDS": "0",
    }
    command = [sys.executable, "-m", "services.profiler"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            assert wait_until(probes_running, seconds=30)
            with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            process.terminate()
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
    assert "elite_profiler_device_memory_free_bytes{" in text
    assert "elite_profiler_host_memory_available_bytes " in text
    assert not probes_running()


def test_a_killed_probe_is_an_error_that_says_so(
    profiler: profiler_pb2_grpc.ProfilerServiceStub,
) -> None:
    request = profiler_pb2.RunStressTestRequest(memory_fraction=0.02, quick=True)
    stream = profiler.RunStressTest(request, timeout=120)
    next(stream)
    (child,) = probes_running()
    child.kill()
    with pytest.raises(grpc.RpcError) as failed:
        list(stream)
    assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "memory ran out" in failed.value.details()
