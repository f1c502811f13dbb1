"""What every server of the house does, seen through real gRPC."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from elite.planner.v1 import planner_pb2 as pb
from elite.planner.v1 import planner_pb2_grpc
from services.common import server as server_module
from services.common.local import serve_locally
from services.common.logging import JsonFormatter
from services.common.transport import CHANNEL_OPTIONS
from tests.integration.common.fake_planner import (
    CALL_SECONDS,
    FULL_NAME,
    Planner,
    connected,
    eventually,
    good_request,
    settings,
    started,
)
from tests.support.refusals import refused


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """One server for the tests that change nothing."""
    with serve_locally(Planner().definition(), settings()) as address:
        yield address


@pytest.fixture(scope="module")
def stub(address: str) -> Iterator[planner_pb2_grpc.PlannerServiceStub]:
    with grpc.insecure_channel(address) as channel:
        yield planner_pb2_grpc.PlannerServiceStub(channel)


def estimate_request() -> pb.EstimateRequest:
    request = good_request()
    return pb.EstimateRequest(machine=request.machine, model=request.model, tier=9)


def failure(call: Callable[[], object]) -> tuple[grpc.RpcError, status_pb2.Status]:
    """The error of a call that must fail, and the status from its grpc-status-details-bin."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    status = rpc_status.from_call(caught.value)
    assert status is not None
    return caught.value, status


def error_info(status: status_pb2.Status) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


# Errors


def test_error_details_reach_the_client(stub: planner_pb2_grpc.PlannerServiceStub) -> None:
    error, status = failure(lambda: stub.Estimate(estimate_request(), timeout=CALL_SECONDS))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == status.message == "tier: is 9: a tier number from ListTiers"
    info = error_info(status)
    assert (info.reason, info.domain) == ("INVALID_REQUEST", "elite")
    _, violations = refused(lambda: stub.Estimate(estimate_request(), timeout=CALL_SECONDS))
    assert violations == {"tier": "is 9: a tier number from ListTiers"}


def test_an_unexpected_exception_tells_the_client_nothing_but_the_request_id(
    stub: planner_pb2_grpc.PlannerServiceStub, caplog: pytest.LogCaptureFixture
) -> None:
    error, status = failure(
        lambda: stub.ListGpus(
            pb.ListGpusRequest(), timeout=CALL_SECONDS, metadata=[("x-request-id", "req-42")]
        )
    )
    assert error.code() is grpc.StatusCode.INTERNAL
    info = error_info(status)
    assert dict(info.metadata) == {"request_id": "req-42"}
    assert "req-42" in error.details()
    told = error.details() + str(status) + str(error.trailing_metadata())
    assert "token" not in told
    assert "RuntimeError" not in told
    assert "could not open /home/someone/token" in caplog.text  # the log has it


class Lacking(Planner):
    """Without WhatIf; and what it calls for ListGpus is not implemented."""

    async def ListGpus(  # noqa: N802
        self,
        request: pb.ListGpusRequest,
        context: Any,
    ) -> pb.ListGpusResponse:
        raise NotImplementedError("a library's own word")


def test_a_method_that_is_not_there_says_so() -> None:
    request = pb.WhatIfRequest(model=good_request().model, host_memory_bytes=2**34)
    with connected(Lacking()) as (stub, _):
        error, status = failure(lambda: stub.WhatIf(request, timeout=CALL_SECONDS))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert error_info(status).reason == "UNIMPLEMENTED"
        assert status.message.startswith("this server has no WhatIf")
        error, _ = failure(lambda: stub.ListGpus(pb.ListGpusRequest(), timeout=CALL_SECONDS))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "library" not in error.details()


def test_a_very_long_error_still_arrives(stub: planner_pb2_grpc.PlannerServiceStub) -> None:
    request = pb.ListOptimizationsRequest()
    error, status = failure(lambda: stub.ListOptimizations(request, timeout=CALL_SECONDS))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error_info(status).reason == "BUSY"
    assert status.message.startswith("käse käse")


def test_a_request_with_hundreds_of_faults_still_gets_its_answer(
    stub: planner_pb2_grpc.PlannerServiceStub,
) -> None:
    request = pb.PlanRequest(model={"model_id": "x"})
    for _ in range(64):
        device = request.machine.profile.devices.add()
        device.measurements.matmul_16bit_dtype = "\x00é" * 40
    code, violations = refused(lambda: stub.Plan(request, timeout=CALL_SECONDS))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "machine.profile.devices[0].kind" in violations


def test_validation_comes_before_the_servicer() -> None:
    planner = Planner()
    with connected(planner) as (stub, _):
        bad = good_request()
        bad.machine.hypothetical.gpu_id = ""
        code, violations = refused(lambda: stub.Plan(bad, timeout=CALL_SECONDS))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert list(violations) == ["machine.hypothetical.gpu_id"]
        assert planner.planned == []
        stub.Plan(good_request(), timeout=CALL_SECONDS)
        assert planner.planned == [good_request()]


# Limits


def test_a_message_over_the_limit() -> None:
    planner = Planner()
    with connected(planner, max_message_bytes=2048) as (stub, _):
        request = good_request()
        request.model.config_json = "x" * 4096
        code, _ = refused(lambda: stub.Plan(request, timeout=CALL_SECONDS))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert planner.planned == []
        assert stub.Plan(good_request(), timeout=CALL_SECONDS)


def test_more_calls_at_once_than_allowed() -> None:
    planner = Planner()
    with connected(planner, max_concurrent_requests=2) as (stub, channel):
        held = [stub.ListModels.future(pb.ListModelsRequest()) for _ in range(2)]
        assert all(planner.running.acquire(timeout=CALL_SECONDS) for _ in held)
        code, _ = refused(lambda: stub.ListTiers(pb.ListTiersRequest(), timeout=CALL_SECONDS))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Who restarts servers that do not answer must not restart one that is full.
        health = health_pb2_grpc.HealthStub(channel)
        probed = health.Check(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS)
        assert probed.status == health_pb2.HealthCheckResponse.SERVING
        planner.release.set()
        assert all(call.result(timeout=CALL_SECONDS).models for call in held)
        stub.ListTiers(pb.ListTiersRequest(), timeout=CALL_SECONDS)


async def test_clients_may_ask_whether_the_server_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a watch that is quiet, ten times as often here. gRPC closes at the third in 5 min."""
    options = dict(server_module.KEEPALIVE_OPTIONS)
    least = options.pop(server_module.LEAST_PING_INTERVAL)
    assert least < 10_000 < dict(CHANNEL_OPTIONS)["grpc.keepalive_time_ms"]
    faster = (*options.items(), (server_module.LEAST_PING_INTERVAL, least // 10))
    monkeypatch.setattr(server_module, "KEEPALIVE_OPTIONS", faster)
    running = await started(Planner())
    pings = [("grpc.keepalive_time_ms", 1000), ("grpc.http2.max_pings_without_data", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}", pings) as channel:
        request = health_pb2.HealthCheckRequest(service=FULL_NAME)
        answers = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=6)
        with pytest.raises(grpc.RpcError) as ended:
            _ = [answer async for answer in answers]
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await running.stop()


def test_a_deadline_cancels_the_handler() -> None:
    planner = Planner()
    with connected(planner) as (stub, _):
        code, _ = refused(lambda: stub.ListModels(pb.ListModelsRequest(), timeout=0.3))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert planner.cancelled.wait(CALL_SECONDS)


# Health and reflection


@pytest.mark.parametrize("service", [FULL_NAME, ""])
def test_health_follows_readiness(monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    monkeypatch.setattr(server_module, "HEALTH_INTERVAL_SECONDS", 0.02)
    planner = Planner()
    with connected(planner) as (_, channel):
        health = health_pb2_grpc.HealthStub(channel)

        def status() -> int:
            request = health_pb2.HealthCheckRequest(service=service)
            answer: int = health.Check(request, timeout=CALL_SECONDS).status
            return answer

        assert status() == health_pb2.HealthCheckResponse.SERVING
        planner.ready = False
        assert eventually(lambda: status() == health_pb2.HealthCheckResponse.NOT_SERVING)
        planner.ready = True
        assert eventually(lambda: status() == health_pb2.HealthCheckResponse.SERVING)


def test_health_can_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEALTH_INTERVAL_SECONDS", 0.02)
    planner = Planner()
    with connected(planner) as (_, channel):
        request = health_pb2.HealthCheckRequest(service=FULL_NAME)
        watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=CALL_SECONDS)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        planner.ready = False
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


def grpcurl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A client that has none of our stubs: all it knows it learned by reflection."""
    command = [str(Path(sys.executable).with_name("grpcurl")), "-plaintext", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_reflection_lists_and_describes_the_service(address: str) -> None:
    listed = grpcurl(address, "list").stdout.split()
    assert {FULL_NAME, "grpc.health.v1.Health"} <= set(listed)
    described = grpcurl(address, "describe", FULL_NAME).stdout
    assert "rpc Plan ( .elite.planner.v1.PlanRequest )" in described


def test_reflection_refuses_what_is_no_message(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        asked = channel.stream_stream(method, bytes, bytes)(
            iter([b"\xff" * 9]), timeout=CALL_SECONDS
        )
        error, status = failure(lambda: next(asked))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_info(status).reason == "INVALID_REQUEST"


def test_a_foreign_client_calls_and_is_refused_in_words(address: str) -> None:
    answer = grpcurl("-d", "{}", address, f"{FULL_NAME}/ListTiers")
    (tier,) = json.loads(answer.stdout)["tiers"]
    # Its spelling of field names (snake or camel case) depends on grpcurl's version.
    assert set(tier.values()) == {7, "1024"}
    refusal = grpcurl("-d", "{}", address, f"{FULL_NAME}/Plan")
    assert refusal.returncode != 0
    assert "InvalidArgument" in refusal.stderr
    assert "give model.model_id (see ListModels)" in refusal.stderr


# Observation


@contextmanager
def json_log() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What the servers of this process log for each call, as they would print it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("planner"))
    logger = logging.getLogger("elite.rpc")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_the_clients_request_id_is_in_the_log(
    stub: planner_pb2_grpc.PlannerServiceStub,
) -> None:
    with json_log() as records:
        stub.ListTiers(
            pb.ListTiersRequest(), metadata=[("x-request-id", "req-7")], timeout=CALL_SECONDS
        )
        assert eventually(lambda: len(records()) == 1)
        stub.ListTiers(pb.ListTiersRequest(), timeout=CALL_SECONDS)
        assert eventually(lambda: len(records()) == 2)
        named, unnamed = records()
    assert named["request_id"] == "req-7"
    assert (named["method"], named["code"]) == (f"/{FULL_NAME}/ListTiers", "OK")
    assert named["seconds"] >= 0
    assert unnamed["request_id"] not in ("", "req-7")  # one is made for each call


async def test_metrics_count_calls_by_method_and_code() -> None:
    registry = CollectorRegistry()
    planner = Planner()
    running = await started(planner, registry)

    def count(method: str, code: str, suffix: str = "requests_total") -> float | None:
        labels = {"method": method, "code": code}
        return registry.get_sample_value(f"elite_planner_rpc_{suffix}", labels)

    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        stub = planner_pb2_grpc.PlannerServiceStub(channel)
        for _ in range(3):
            await stub.ListTiers(pb.ListTiersRequest())
        for call in (
            lambda: stub.ListGpus(pb.ListGpusRequest()),
            lambda: stub.Plan(pb.PlanRequest()),
            lambda: stub.ListModels(pb.ListModelsRequest(), timeout=0.2),
        ):
            with pytest.raises(grpc.RpcError):
                await call()
    await running.stop()
    assert count("ListTiers", "OK") == 3
    assert count("ListTiers", "OK", "duration_seconds_count") == 3
    assert count("ListGpus", "INTERNAL") == 1
    assert count("Plan", "INVALID_ARGUMENT") == 1
    assert count("ListModels", "CANCELLED") == 1
    assert count("ListModels", "OK") is None


# Start and stop
