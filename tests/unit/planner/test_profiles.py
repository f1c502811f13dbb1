"""From profiles to machines: measured, from the card table, or refused."""

from __future__ import annotations

import pytest

from elite.profiler.v1 import profiler_pb2
from services.common.errors import ErrorReason, ServiceError
from services.planner.machine import ComputeDtype, DeviceKind
from services.planner.profiles import machine_from_profile
from tests.support.machines import GIBIBYTE, card_profile, measured_profile


def test_measured_figures_are_used() -> None:
    machine = machine_from_profile(measured_profile())
    assert machine.device_kind is DeviceKind.CPU
    assert machine.shared_memory
    assert machine.gpu_safe_bytes == 20 * GIBIBYTE
    assert machine.host_safe_bytes == 22 * GIBIBYTE
    assert machine.disk_free_bytes == 100 * GIBIBYTE
    rates = machine.rates.of(2)
    assert rates is not None
    assert rates.attention(64)[0].points == ((1024, 30e9), (4096, 50e9))
    assert machine.dtypes == (ComputeDtype.BFLOAT16, ComputeDtype.FLOAT32)
    assert len(machine.notes) == 1  # attention kernels were not probed
    assert "not been probed" in machine.notes[0]


@pytest.mark.parametrize(("share", "said"), [(0.42, 1), (0.02, 0), (0.0, 0)])
def test_a_stress_test_beside_other_programs_is_told_of(share: float, said: int) -> None:
    profile = measured_profile()
    profile.devices[0].measurements.core_wait_share = share
    notes = [note for note in machine_from_profile(profile).notes if "waited 42%" in note]
    assert len(notes) == said
    assert all("run `elite profile --stress` again" in note for note in notes)


@pytest.mark.parametrize(("lowest", "highest", "said"), [(0.97, 1.02, 0), (0.8, 1.15, 1)])
def test_a_machine_of_changing_speed_is_named(lowest: float, highest: float, said: int) -> None:
    profile = measured_profile()
    measured = profile.devices[0].measurements
    measured.lowest_speed_share, measured.highest_speed_share = lowest, highest
    notes = machine_from_profile(profile).notes
    assert sum("between 80% and 115% of its mean speed" in note for note in notes) == said


def test_memory_taken_since_the_stress_test_counts() -> None:
    profile = measured_profile()
    profile.devices[0].memory_free_bytes = 5 * GIBIBYTE
    assert machine_from_profile(profile).gpu_safe_bytes == 5 * GIBIBYTE


@pytest.mark.parametrize(
    "field",
    [
        "safe_allocatable_bytes",
        "matmul_16bit_flops_per_second",
        "matmul_32bit_flops_per_second",
        "memory_bandwidth_bytes_per_second",
        "attention_rates",
    ],
)
def test_a_missing_measurement_is_named(field: str) -> None:
    profile = measured_profile()
    profile.devices[0].measurements.ClearField(field)
    with pytest.raises(ServiceError) as refusal:
        machine_from_profile(profile)
    assert refusal.value.reason is ErrorReason.MISSING_MEASUREMENT
    violation = refusal.value.violations[0]
    assert violation.field == f"machine.profile.devices[0].measurements.{field}"
    assert violation.fix == "run `elite profile --stress`"


def test_a_processor_without_measurements_is_refused() -> None:
    profile = measured_profile()
    profile.devices[0].ClearField("measurements")
    with pytest.raises(ServiceError, match=r"measurements\.matmul_16bit_flops_per_second"):
        machine_from_profile(profile)


def test_a_known_card_without_measurements_is_planned_from_the_table() -> None:
    machine = machine_from_profile(card_profile())
    assert machine.gpu_safe_bytes == 23 * GIBIBYTE - int(0.9 * GIBIBYTE)
    assert machine.rates.host_to_device == 25e9
    assert machine.attention_kernels == ("sdpa_flash", "sdpa_cudnn", "sdpa_efficient")
    notes = " ".join(machine.notes)
    assert "card-table" in notes
    assert "process itself is a table figure" in notes


def test_an_unknown_card_without_measurements_is_refused() -> None:
    with pytest.raises(ServiceError, match="host_to_device_pinned") as refusal:
        machine_from_profile(card_profile("NVIDIA Imaginary 9000"))
    assert refusal.value.reason is ErrorReason.MISSING_MEASUREMENT


def test_the_device_with_the_largest_budget_is_planned_for() -> None:
    profile = measured_profile()
    profile.devices.append(card_profile().devices[0])
    assert machine_from_profile(profile).device_index == 1
    assert machine_from_profile(profile, 0).device_index == 0
    with pytest.raises(ServiceError, match=r"constraints\.device_index: is 2"):
        machine_from_profile(profile, 2)


def test_a_device_that_cannot_be_planned_for_does_not_hide_one_that_can() -> None:
    profile = measured_profile()
    profile.devices.append(card_profile("NVIDIA Imaginary 9000").devices[0])
    assert machine_from_profile(profile).device_index == 0


def test_only_working_fused_kernels_count() -> None:
    profile = card_profile()
    works, refused = profiler_pb2.KERNEL_STATUS_WORKS, profiler_pb2.KERNEL_STATUS_UNAVAILABLE
    for name, status in (
        ("sdpa_math", works),
        ("sdpa_flash", refused),
        ("sdpa_efficient", works),
    ):
        profile.software.attention_kernels.add(name=name, status=status)
    assert machine_from_profile(profile).attention_kernels == ("sdpa_efficient",)


def test_packages_that_are_listed_decide() -> None:
    profile = card_profile()
    assert machine_from_profile(profile).has_bitsandbytes
    profile.software.packages.add(name="torch", version="2.13.0")
    assert not machine_from_profile(profile).has_bitsandbytes
    profile.software.packages.add(name="bitsandbytes", version="0.50.2")
    assert machine_from_profile(profile).has_bitsandbytes


def test_cards_before_ampere_compute_in_float16() -> None:
    profile = card_profile()
    profile.devices[0].compute_capability.major = 7
    assert machine_from_profile(profile).dtypes == (ComputeDtype.FLOAT16,)


def test_attention_of_which_one_direction_was_timed_was_not_measured() -> None:
    profile = measured_profile()
    rates = profile.devices[0].measurements.attention_rates
    for rate in rates:
        rate.dtype, rate.head_size, rate.backward_flops_per_second = "bfloat16", 64, 2e10
    with pytest.raises(ServiceError, match=r"measurements\.attention_rates") as refusal:
        machine_from_profile(profile)
    assert refusal.value.reason is ErrorReason.MISSING_MEASUREMENT
    rates[0].forward_flops_per_second = 1e10
    assert machine_from_profile(profile)


@pytest.mark.parametrize("rate", [5e-324, 1e-300, 0.9])
def test_a_rate_that_no_machine_has_is_named(rate: float) -> None:
    measurements, disk = "machine.profile.devices[0].measurements", "machine.profile.host"
    for field in (f"{measurements}.matmul_16bit_flops_per_second",
                  f"{measurements}.attention_rates[1].flops_per_second",
                  f"{disk}.scratch_disk.read_bytes_per_second"):  # fmt: skip
        profile = measured_profile()
        measured = profile.devices[0].measurements
        owner = {"attention": measured.attention_rates[1], "scratch": profile.host.scratch_disk}
        wrong = next((owner[name] for name in owner if name in field), measured)
        setattr(wrong, field.rpartition(".")[2], rate)
        with pytest.raises(ServiceError) as refusal:
            machine_from_profile(profile)
        assert [violation.field for violation in refusal.value.violations] == [field]
        assert refusal.value.reason is ErrorReason.INVALID_REQUEST


def test_a_disk_without_an_end_is_as_large_as_any_plan_needs() -> None:
    profile = measured_profile()
    profile.host.scratch_disk.free_bytes = 2**64 - 1
    assert machine_from_profile(profile).disk_free_bytes == 2**50
