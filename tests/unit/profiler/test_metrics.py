"""The profiler's gauges as Prometheus scrapes them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from elite.profiler.v1 import profiler_pb2
from services.common.errors import ErrorReason, ServiceError
from services.profiler.metrics import ProfileCollector
from tests.support.machines import measured_profile


def scrape(snapshot: object) -> dict[str, list[tuple[dict[str, str], float]]]:
    registry = CollectorRegistry()
    registry.register(ProfileCollector(snapshot))  # type: ignore[arg-type]
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        family.name: [(sample.labels, sample.value) for sample in family.samples]
        for family in families
    }


def test_gauges_follow_the_machine() -> None:
    profile = measured_profile()
    profile.devices[0].uuid = "CPU-1"
    found = scrape(lambda: profile)
    ((labels, value),) = found["elite_profiler_device_memory_free_bytes"]
    assert labels == {"index": "0", "uuid": "CPU-1", "name": "a processor"}
    assert value == profile.devices[0].memory_free_bytes
    assert found["elite_profiler_scratch_disk_free_bytes"] == [({}, 100 * 2**30)]
    by_length = {
        labels["sequence_tokens"]: value
        for labels, value in found["elite_profiler_device_attention_flops_per_second"]
    }
    assert by_length == {"1024": 30e9, "4096": 50e9}


def test_attention_has_a_sample_per_length_head_size_and_dtype() -> None:
    profile = measured_profile()
    rates = profile.devices[0].measurements.attention_rates
    rates.clear()
    shapes = {("512", "64", "bfloat16"), ("512", "128", "bfloat16"), ("512", "64", "float32")}
    for tokens, head_size, dtype in shapes:
        rates.add(
            sequence_tokens=int(tokens), head_size=int(head_size), dtype=dtype, flops_per_second=1
        )
    samples = scrape(lambda: profile)["elite_profiler_device_attention_flops_per_second"]
    labels = [
        (found["sequence_tokens"], found["head_size"], found["dtype"]) for found, _ in samples
    ]
    assert sorted(labels) == sorted(shapes)


def test_unmeasured_is_left_out_and_exhausted_is_not() -> None:
    profile = profiler_pb2.NodeProfile(devices=[profiler_pb2.Device(memory_total_bytes=1)])
    found = scrape(lambda: profile)
    assert found["elite_profiler_device_matmul_16bit_flops_per_second"] == []
    assert "elite_profiler_scratch_disk_read_bytes_per_second" not in found
    assert [value for _, value in found["elite_profiler_device_memory_free_bytes"]] == [0]
    assert found["elite_profiler_scratch_disk_free_bytes"] == [({}, 0)]


def test_a_broken_driver_does_not_break_the_scrape() -> None:
    def snapshot() -> profiler_pb2.NodeProfile:
        raise ServiceError(ErrorReason.DEVICE_ERROR, "GPU is lost")

    assert scrape(snapshot) == {}
