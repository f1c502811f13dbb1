"""Where a server listens, and how it stops."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from elite.planner.v1 import planner_pb2 as pb
from elite.planner.v1 import planner_pb2_grpc
from services.common.addresses import AddressError
from services.common.local import serve_locally
from tests.integration.common.fake_planner import (
    CALL_SECONDS,
    FULL_NAME,
    Planner,
    connected,
    settings,
    started,
)


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(OSError, match=address),
            serve_locally(Planner().definition(), settings(address)),
        ):
            pass


def test_an_address_without_a_port_is_not_called_taken() -> None:
    with (
        pytest.raises(AddressError, match="cannot listen on foo: give host:port"),
        serve_locally(Planner().definition(), settings("foo")),
    ):
        pass


def test_a_host_that_nobody_knows_is_not_called_taken() -> None:
    unknown = serve_locally(Planner().definition(), settings("nowhere.invalid:0"))
    why = r"nowhere\.invalid:0: .*(not known|resolution)"
    with pytest.raises(AddressError, match=why), unknown:
        pass


def test_two_servers_never_share_a_port() -> None:
    """With SO_REUSEPORT the kernel would deal the calls out between them."""
    with serve_locally(Planner().definition(), settings()) as address:
        second = serve_locally(Planner().definition(), settings(address))
        with pytest.raises(OSError, match=address), second:
            pass


def test_a_unix_socket(tmp_path: Path) -> None:
    with connected(Planner(), address=f"unix:{tmp_path}/planner.sock") as (stub, _):
        assert stub.ListTiers(pb.ListTiersRequest(), timeout=CALL_SECONDS).tiers[0].tier == 7


async def test_a_graceful_stop_lets_a_running_call_end() -> None:
    planner = Planner()
    running = await started(planner)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        stub = planner_pb2_grpc.PlannerServiceStub(channel)
        call = stub.ListModels(pb.ListModelsRequest())
        assert await asyncio.to_thread(planner.running.acquire, timeout=CALL_SECONDS)
        stopping = asyncio.create_task(running.stop())
        await asyncio.sleep(0.1)
        assert not stopping.done()
        with pytest.raises(grpc.RpcError) as refusal:  # no new ones meanwhile
            await stub.ListTiers(pb.ListTiersRequest(), timeout=CALL_SECONDS)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        planner.release.set()
        assert (await call).models[0].model_id == "released"
        await asyncio.wait_for(stopping, CALL_SECONDS)
    assert not planner.cancelled.is_set()


async def test_an_open_watch_of_health_does_not_hold_a_stop() -> None:
    running = await started(Planner())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        request = health_pb2.HealthCheckRequest(service=FULL_NAME)
        watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=4 * CALL_SECONDS)
        answers = aiter(watch)
        assert (await anext(answers)).status == health_pb2.HealthCheckResponse.SERVING
        running.grace_seconds = 3 * CALL_SECONDS
        stopping = asyncio.create_task(running.stop())
        assert (await anext(answers)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(StopAsyncIteration):
            await anext(answers)
        await asyncio.wait_for(stopping, CALL_SECONDS)
