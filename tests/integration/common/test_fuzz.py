"""Bytes that no client of ours would send: every method of every service outlives them.

Random bytes, and requests that are good but for some bytes or fields. Whatever comes back is an
answer or an error of the catalogue; never INTERNAL, never a trace of the code.
`ELITE_FUZZ_CASES` is their number for each method.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2
from elite.trainer.v1 import trainer_pb2
from services.common.local import serve_locally
from services.planner.servicer import planner_service
from services.planner.settings import PlannerSettings
from services.profiler.servicer import profiler_service
from services.profiler.settings import ProfilerSettings
from tests.integration.common.fake_planner import good_request
from tests.support.run_specs import a_spec
from tests.support.trainer_stack import TrainerStack
from tests.support.valkey import Valkey

CASES = int(os.environ.get("ELITE_FUZZ_CASES", "320"))
_AT_ONCE = 32
_HARMLESS = {
    grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.DEADLINE_EXCEEDED,
}  # fmt: skip
# Measures the machine, for a minute a call.
_LEFT_OUT = {"RunStressTest"}

METHODS = [
    method
    for module, name in (
        (planner_pb2, "PlannerService"),
        (profiler_pb2, "ProfilerService"),
        (trainer_pb2, "TrainerService"),
    )
    for method in module.DESCRIPTOR.services_by_name[name].methods
    if method.name not in _LEFT_OUT
]


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """All three services, with a real store."""
    folder = tmp_path_factory.mktemp("fuzz")
    valkey = Valkey().start()
    stack = TrainerStack(folder, valkey)
    stack.start_api()
    profiler = ProfilerSettings(address="127.0.0.1:0", state_directory=folder / "profiler")
    planner = PlannerSettings(address="127.0.0.1:0", state_directory=folder / "planner")
    with (
        serve_locally(profiler_service(profiler), profiler) as profiler_address,
        serve_locally(planner_service(planner), planner) as planner_address,
    ):
        yield {
            "ProfilerService": profiler_address, "PlannerService": planner_address,
            "TrainerService": stack.address,
        }  # fmt: skip
    stack.close()
    valkey.close()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_outlives_any_bytes(addresses: dict[str, str], method: MethodDescriptor) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    found: Counter[grpc.StatusCode] = Counter()
    with grpc.insecure_channel(addresses[method.containing_service.name]) as channel:
        start = _caller(channel, method)
        for _ in range(0, CASES, _AT_ONCE):
            calls = [start(some_bytes(chance, method)) for _ in range(_AT_ONCE)]
            for code, text in (_end(call, method.server_streaming) for call in calls):
                found[code] += 1
                assert code in _HARMLESS, f"seed {seed}: {code} {text}"
                assert "Traceback" not in text, f"seed {seed}: {text}"
                assert not re.search(r"\.pyc?\b", text), f"seed {seed}: {text}"
        grpc.channel_ready_future(channel).result(timeout=10)
    assert sum(found.values()) >= CASES


def _caller(channel: grpc.Channel, method: MethodDescriptor) -> Any:
    """Starts a call that sends bytes as they are."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.server_streaming:
        stream = channel.unary_stream(path)
        return lambda data: stream(data, timeout=1.0)
    unary = channel.unary_unary(path)
    return lambda data: unary.future(data, timeout=30.0)


def _end(call: Any, is_stream: bool) -> tuple[grpc.StatusCode, str]:
    """How a call ends; a stream is left after its first answer."""
    try:
        if is_stream:
            next(call, None)
            call.cancel()
        else:
            call.result()
    except grpc.RpcError:
        return call.code(), str(call.details())
    return grpc.StatusCode.OK, ""


def _good_requests() -> dict[str, Message]:
    plan = good_request()
    run = a_spec(Path("/data"), "succeed", 3)
    model, machine = plan.model, plan.machine
    return {
        "Plan": plan,
        "Estimate": planner_pb2.EstimateRequest(machine=machine, model=model, tier=3),
        "WhatIf": planner_pb2.WhatIfRequest(
            model=model, gpu_ids=["rtx-3090", "h200"], host_memory_bytes=2**36
        ),
        "ReportOutcome": planner_pb2.ReportOutcomeRequest(run_id="run-1", plan=run.plan),
        "CreateRun": trainer_pb2.CreateRunRequest(spec=run),
    }


_GOOD = _good_requests()


def some_bytes(chance: random.Random, method: MethodDescriptor) -> bytes:
    """Noise, a message of random fields, or such a message with some of its bytes changed."""
    if chance.random() < 0.1:
        return chance.randbytes(chance.randrange(200))
    message = GetMessageClass(method.input_type)()
    if method.name in _GOOD and chance.random() < 0.6:
        message.CopyFrom(_GOOD[method.name])
        for field in chance.sample(list(message.DESCRIPTOR.fields), 1):
            _put(chance, message, field, 3)
    else:
        _filled(chance, message, 0)
    data = bytearray(message.SerializeToString())
    if data and chance.random() < 0.4:
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def _filled(chance: random.Random, message: Message, depth: int) -> Message:
    """Some of the fields, with values at and beyond every edge."""
    for field in message.DESCRIPTOR.fields:
        if depth > 5 or chance.random() < 0.4:
            continue
        count = chance.choice((0, 1, 2, 40)) if field.is_repeated else 1
        for _ in range(count):
            _put(chance, message, field, depth)
    return message


def _put(chance: random.Random, message: Message, field: FieldDescriptor, depth: int) -> None:
    if field.message_type is None:
        value = _value(chance, field)
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
    elif not field.message_type.GetOptions().map_entry:
        holder = getattr(message, field.name)
        child = holder.add() if field.is_repeated else holder
        child.SetInParent()
        _filled(chance, child, depth + 1)


_NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), -1, 0, 1, 2, 4096, 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), -1, 0, 1, 2**40, 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 1, 2, 11, 4096, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 1, 2, 4096, 2**40, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: (0.0, -1.0, 0.5, 1e-300, 1e300, float("nan"), float("inf")),
    FieldDescriptor.CPPTYPE_FLOAT: (0.0, -1.0, 0.5, 1e30, float("nan"), float("-inf")),
    FieldDescriptor.CPPTYPE_BOOL: (False, True),
}
_TEXTS = (
    "", "a", "phi-2", "smollm2-135m", "rtx-3090", "../../etc/passwd", "/etc/passwd", "\0", "*",
    "\u202e", "{}", '{"model_type": "llama"}', "[" * 500, "x" * 5000, "'; DROP TABLE runs; --",
    "\U0001f4a9" * 50, "${jndi:ldap://x}", "1" * 30, "adamw-8bit",
)  # fmt: skip


def _value(chance: random.Random, field: FieldDescriptor) -> Any:
    if field.enum_type is not None:
        known = [value.number for value in field.enum_type.values]
        return chance.choice([*known, 77])
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        text = chance.choice(_TEXTS)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    return chance.choice(_NUMBERS[field.cpp_type])


def test_the_generator_makes_good_and_bad_requests() -> None:
    chance, kinds = random.Random(1), Counter[str]()
    service = planner_pb2.DESCRIPTOR.services_by_name["PlannerService"]
    for _ in range(200):
        try:
            data = some_bytes(chance, service.methods_by_name["Plan"])
            planner_pb2.PlanRequest.FromString(data)
            kinds["parsed"] += 1
        except DecodeError:
            kinds["refused"] += 1
    assert min(kinds["parsed"], kinds["refused"]) > 20
