"""Errors of real calls to real servers, as a user reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from elite.planner.v1 import planner_pb2, planner_pb2_grpc
from elite_cli import client as client_module
from elite_cli.client import CallError, ServiceClient, connect
from elite_cli.errors import ExitCode
from services.common.errors import ErrorReason, FieldViolation, ServiceError, invalid_fields
from services.common.local import serve_locally
from services.common.server import ServiceDefinition
from services.common.settings import ServerSettings

ERRORS = {
    "two-fields": invalid_fields(
        [
            FieldViolation("constraints.tier", "is 99", "a tier from ListTiers"),
            FieldViolation("model.model_id", "is unknown", "an id from ListModels"),
        ]
    ),
    "missing": invalid_fields(
        [FieldViolation("machine.profile.devices[0].measurements", "is missing", "run the test")],
        reason=ErrorReason.MISSING_MEASUREMENT,
    ),
    "store": ServiceError(ErrorReason.STORE_UNAVAILABLE, "Redis does not answer"),
    "busy": ServiceError(ErrorReason.BUSY, "another test is running"),
    "not-found": ServiceError(ErrorReason.NOT_FOUND, "there is no such run"),
}


class Planner(planner_pb2_grpc.PlannerServiceServicer):  # type: ignore[misc]
    """Fails as the model's name says."""

    async def Plan(self, request: planner_pb2.PlanRequest, context: Any) -> Any:  # noqa: N802, ARG002
        if request.model.model_id == "slow":
            await asyncio.sleep(30)
        raise ERRORS.get(request.model.model_id) or RuntimeError("a secret")


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceClient]:
    socket: Path = tmp_path_factory.mktemp("s") / "p.sock"
    definition = ServiceDefinition(
        "elite.planner.v1.PlannerService",
        "planner",
        lambda server: planner_pb2_grpc.add_PlannerServiceServicer_to_server(Planner(), server),
    )
    settings = ServerSettings(address=f"unix:{socket}", shutdown_grace_seconds=0)
    with serve_locally(definition, settings) as address:
        yield connect("planner", address, planner_pb2_grpc.PlannerServiceStub)


def plan_error(planner: ServiceClient, model_id: str) -> CallError:
    machine = planner_pb2.Machine(
        hypothetical=planner_pb2.HypotheticalMachine(gpu_id="rtx-3090", host_memory_bytes=2**36)
    )
    model = planner_pb2.ModelReference(model_id=model_id)
    with pytest.raises(CallError) as raised:
        planner.call("Plan", planner_pb2.PlanRequest(machine=machine, model=model))
    return raised.value


def test_every_bad_field_is_a_line(planner: ServiceClient) -> None:
    error = plan_error(planner, "two-fields")
    assert error.lines == (
        "constraints.tier: is 99: a tier from ListTiers",
        "model.model_id: is unknown: an id from ListModels",
    )
    assert error.fields == ("constraints.tier", "model.model_id")
    assert error.exit_code == ExitCode.BAD_INPUT


@pytest.mark.parametrize(
    ("model_id", "reason", "exit_code"),
    [
        ("missing", "MISSING_MEASUREMENT", ExitCode.BAD_INPUT),
        ("store", "STORE_UNAVAILABLE", ExitCode.UNAVAILABLE),
        ("busy", "BUSY", ExitCode.FAILURE),
        ("not-found", "NOT_FOUND", ExitCode.BAD_INPUT),
    ],
)
def test_reason_and_exit_code(
    planner: ServiceClient, model_id: str, reason: str, exit_code: ExitCode
) -> None:
    error = plan_error(planner, model_id)
    assert (error.reason, error.exit_code) == (reason, exit_code)
    assert error.lines


def test_an_internal_error_tells_no_secrets(planner: ServiceClient) -> None:
    error = plan_error(planner, "unexpected")
    assert error.exit_code == ExitCode.FAILURE
    assert "a secret" not in str(error)


def test_rules_of_the_proto_reach_the_user(planner: ServiceClient) -> None:
    with pytest.raises(CallError) as raised:
        planner.call("Plan", planner_pb2.PlanRequest())
    assert any(line.startswith("machine: is missing: ") for line in raised.value.lines)


def test_an_unreachable_server_is_named() -> None:
    client = connect("planner", "127.0.0.1:1", planner_pb2_grpc.PlannerServiceStub)
    error = plan_error(client, "any")
    assert error.lines[0].startswith("planner at 127.0.0.1:1: cannot be reached")
    assert error.exit_code == ExitCode.UNAVAILABLE


def test_every_call_has_a_deadline(planner: ServiceClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(client_module.DEADLINE_SECONDS, "Plan", 0.2)
    error = plan_error(planner, "slow")
    assert "Plan did not answer within 0 s" in error.lines[0]
    assert error.exit_code == ExitCode.UNAVAILABLE


def test_a_request_too_large_is_explained(planner: ServiceClient) -> None:
    error = plan_error(planner, "x" * (5 * 1024 * 1024))
    assert error.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than the service takes" in error.lines[0]


def test_the_wrong_service_is_noticed(planner: ServiceClient) -> None:
    from elite.profiler.v1 import profiler_pb2, profiler_pb2_grpc

    wrong = connect("profiler", planner.address, profiler_pb2_grpc.ProfilerServiceStub)
    with pytest.raises(CallError, match="is that the profiler's address"):
        wrong.call("GetProfile", profiler_pb2.GetProfileRequest())
