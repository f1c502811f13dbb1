"""The rules of the protos, as the interceptor applies them."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2
from elite.trainer.v1 import trainer_pb2
from elite.validation.v1 import validation_pb2
from services.common.errors import ErrorReason, ServiceError
from services.common.validation import shown, validate, violations_of


def broken(message: Message) -> dict[str, str]:
    """Descriptions of the violations, by field path."""
    return {violation.field: violation.description for violation in violations_of(message)}


def good_request() -> planner_pb2.PlanRequest:
    """Passes every rule; the tests below break it in one place."""
    request = planner_pb2.PlanRequest()
    request.model.model_id = "smollm2-135m"
    profile = request.machine.profile
    profile.host.memory_total_bytes = 2**34
    profile.devices.add(kind=profiler_pb2.DEVICE_KIND_CUDA, memory_total_bytes=2**34)
    return request


def test_a_good_request_passes() -> None:
    validate(good_request())


def test_every_violation_is_named_at_once() -> None:
    request = planner_pb2.PlanRequest()
    request.constraints.max_step_seconds = -1
    with pytest.raises(ServiceError) as caught:
        validate(request)
    assert caught.value.reason is ErrorReason.INVALID_REQUEST
    fields = {violation.field for violation in caught.value.violations}
    assert fields == {"machine", "model", "constraints.max_step_seconds"}
    assert "model.config_json" in caught.value.message  # the fix


def test_required_message_string_list_and_enum() -> None:
    plan = planner_pb2.Plan(lora={"rank": 8}, execution={"loss_tile_rows": 1})
    found = broken(plan)
    assert found["model"].startswith("is missing: ")
    assert found["lora.target_modules"].startswith("is missing: ")
    assert found["execution.executor"].startswith("is missing: ")
    assert broken(planner_pb2.ReportOutcomeRequest())["run_id"] == "is missing: the run's id"


@pytest.mark.parametrize("seconds", [0, 31536000.0])
def test_bounds_are_inclusive(seconds: float) -> None:
    assert not broken(planner_pb2.Constraints(max_step_seconds=seconds))


@pytest.mark.parametrize("seconds", [-1e-9, 31536000.5, math.nan, math.inf, -math.inf])
def test_out_of_range(seconds: float) -> None:
    found = broken(planner_pb2.Constraints(max_step_seconds=seconds))
    assert list(found) == ["max_step_seconds"]
    assert "seconds, at most one year" in found["max_step_seconds"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_float_without_rules_must_still_be_finite(value: float) -> None:
    assert list(broken(profiler_pb2.Device(
        kind=profiler_pb2.DEVICE_KIND_CPU, memory_total_bytes=1, power_limit_watts=value
    ))) == ["power_limit_watts"]  # fmt: skip


_BYTES_WITHOUT_BOUND = {
    # Network file systems without an end; the planner takes what it can use.
    "elite.profiler.v1.Disk.total_bytes",
    "elite.profiler.v1.Disk.free_bytes",
}


def test_a_profiles_bytes_rates_and_times_have_bounds() -> None:
    """Without one a figure that no machine has is an overflow, or a plan of infinite seconds."""
    unbounded = {
        field.full_name
        for field in _all_fields(profiler_pb2.NodeProfile.DESCRIPTOR, set())
        if field.name.endswith(("_bytes", "_per_second", "_seconds", "_watts"))
        and not field.GetOptions().Extensions[validation_pb2.field].HasField("maximum")
    }
    assert unbounded == _BYTES_WITHOUT_BOUND


def test_numbers_are_told_whole() -> None:
    memory = planner_pb2.HypotheticalMachine(gpu_id="x", host_memory_bytes=2**30 - 1)
    assert broken(memory) == {"host_memory_bytes": "is 1073741823: between 1 GiB and 1 PiB"}
    steps = trainer_pb2.TrainingSettings(steps=2_000_000_000)
    assert broken(steps) == {"steps": "is 2000000000: between 1 and 1000000000"}
    assert [shown(value) for value in (2.0**50, 0.5, -3.0, 1e18, 2**64 - 1, math.nan)] == [
        "1125899906842624", "0.5", "-3", "1e+18", "18446744073709551615", "nan"
    ]  # fmt: skip


def test_no_upper_bound_does_not_let_infinity_in() -> None:
    assert not broken(planner_pb2.TimeLine(seconds=1e300))
    assert list(broken(planner_pb2.TimeLine(seconds=math.inf))) == ["seconds"]


def test_an_absent_optional_number_is_not_judged() -> None:
    interval = profiler_pb2.WatchCapacityRequest()  # no presence: 0 is a value
    assert list(broken(interval)) == ["interval_seconds"]
    assert not broken(planner_pb2.Constraints())  # device_index and headroom_fraction absent
    assert list(broken(planner_pb2.Constraints(device_index=64))) == ["device_index"]
    assert list(broken(planner_pb2.Constraints(headroom_fraction=0.91))) == ["headroom_fraction"]


def test_length_is_counted_in_characters() -> None:
    assert not broken(planner_pb2.ModelReference(model_id="é" * 128))
    found = broken(planner_pb2.ModelReference(model_id="é" * 129))
    assert "129 characters" in found["model_id"]
    assert "128" in found["model_id"]


@pytest.mark.parametrize("dtype", ["", "bfloat16", "float16"])
def test_pattern_holds(dtype: str) -> None:
    assert not broken(profiler_pb2.DeviceMeasurements(matmul_16bit_dtype=dtype))


@pytest.mark.parametrize("dtype", ["bfloat16 ", "bfloat16\n", "xfloat16", "BFLOAT16"])
def test_the_whole_string_must_match_the_pattern(dtype: str) -> None:
    found = broken(profiler_pb2.DeviceMeasurements(matmul_16bit_dtype=dtype))
    assert list(found) == ["matmul_16bit_dtype"]
    assert repr(dtype) in found["matmul_16bit_dtype"]


def test_max_items() -> None:
    request = planner_pb2.EstimateRequest(optimization_ids=["x"] * 64)
    assert "optimization_ids" not in broken(request)
    request.optimization_ids.append("x")
    assert broken(request)["optimization_ids"] == "has 65 elements: give at most 64"


def test_unknown_enum_number() -> None:
    request = good_request()
    request.objective = 99
    assert broken(request)["objective"] == (
        "is 99: one of OBJECTIVE_MAX_CONTEXT, OBJECTIVE_FASTEST"
    )


def test_unknown_enum_number_in_a_list() -> None:
    request = trainer_pb2.ListRunsRequest(states=[trainer_pb2.RUN_STATE_PENDING, 99])
    assert broken(request)["states[1]"].startswith("is 99: one of RUN_STATE_")


def test_required_oneof_and_its_members() -> None:
    request = good_request()
    request.machine.ClearField("profile")
    assert broken(request) == {
        "machine": "needs profile or hypothetical: give machine.profile (from "
        "ProfilerService.GetProfile) or machine.hypothetical"
    }
    request.machine.hypothetical.host_memory_bytes = 2**30
    assert list(broken(request)) == ["machine.hypothetical.gpu_id"]
    request = good_request()
    request.model.config_json = ""  # set, and empty: the other member stays unjudged
    assert list(broken(request)) == ["model.config_json"]


def test_paths_lead_into_nested_and_repeated_messages() -> None:
    request = good_request()
    devices = request.machine.profile.devices
    devices[0].memory_total_bytes = 0
    devices.add(kind=profiler_pb2.DEVICE_KIND_CPU, memory_total_bytes=1)
    devices[1].measurements.attention_rates.add()
    devices[1].measurements.attention_rates.add(flops_per_second=-1)
    assert set(broken(request)) == {
        "machine.profile.devices[0].memory_total_bytes",
        "machine.profile.devices[1].measurements.attention_rates[1].flops_per_second",
    }


def _all_fields(descriptor: Descriptor, seen: set[str]) -> list[FieldDescriptor]:
    if descriptor.full_name in seen:
        return []
    seen.add(descriptor.full_name)
    fields = list(descriptor.fields)
    for field in descriptor.fields:
        if field.message_type is not None:
            fields += _all_fields(field.message_type, seen)
    return fields


def test_the_contract_uses_no_rule_that_would_be_ignored() -> None:
    """A rule on a kind of field it is not compiled for would look kept and never be checked."""
    numbers = {
        FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_FLOAT,
        FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64,
        FieldDescriptor.CPPTYPE_DOUBLE,
    }  # fmt: skip
    seen: set[str] = set()
    modules = (planner_pb2, profiler_pb2, trainer_pb2)
    messages = [m for pb in modules for m in pb.DESCRIPTOR.message_types_by_name.values()]
    fields = [field for message in messages for field in _all_fields(message, seen)]
    ignored = []
    for field in fields:
        rules = field.GetOptions().Extensions[validation_pb2.field]
        single = not field.is_repeated
        is_text = single and field.type == FieldDescriptor.TYPE_STRING
        is_number = single and field.cpp_type in numbers
        has_range = rules.HasField("minimum") or rules.HasField("maximum")
        optional = field.containing_oneof is not None and len(field.containing_oneof.fields) == 1
        if (
            (has_range and not is_number)
            or ((rules.HasField("max_length") or rules.pattern) and not is_text)
            or (rules.HasField("max_items") and single)
            or (rules.required and optional)
        ):
            ignored.append(field.full_name)
    assert len(fields) > 100
    assert not ignored


_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(-3, 9),
    FieldDescriptor.CPPTYPE_STRING: st.text(max_size=8) | st.just("x" * 300),
}


def _values(descriptor: Descriptor) -> st.SearchStrategy[dict[str, Any]]:
    """Keyword arguments for any message of this type, each field there or not."""
    optional = {}
    for field in descriptor.fields:
        if field.message_type is not None:
            one = st.deferred(lambda nested=field.message_type: _values(nested))
        else:
            one = _SCALARS[field.cpp_type]
        optional[field.name] = st.lists(one, max_size=2) if field.is_repeated else one
    return st.fixed_dictionaries({}, optional=optional)


def _resolve(message: Message, path: str) -> Any:
    value: Any = message
    for name, _, index in re.findall(r"(\w+)(\[(\d+)\])?", path):
        value = getattr(value, name)
        value = value[int(index)] if index else value
    return value


@given(values=_values(planner_pb2.PlanRequest.DESCRIPTOR))
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_any_request_passes_or_names_fields_that_exist(values: dict[str, Any]) -> None:
    request = planner_pb2.PlanRequest(**values)
    problem: ServiceError | None = None
    try:
        validate(request)
    except ServiceError as error:
        problem = error
    if problem is not None:
        assert problem.violations
        for violation in problem.violations:
            _resolve(request, violation.field)  # a path that is wrong raises here
        assert problem.to_status().details
