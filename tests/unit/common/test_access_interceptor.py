"""The record of changes, when the caller has gone before the call ends."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

import pytest

from elite.trainer.v1 import trainer_pb2
from services.common.client_limits import ClientLimits, OpenCalls
from services.common.interceptors.access import AccessInterceptor
from services.common.interceptors.base import Call

METHOD = "/elite.trainer.v1.TrainerService/CancelRun"


class LeavingContext:
    """Of a client that goes while it is served; grpcio's own ends the process when it is asked."""

    has_left = False

    def peer(self) -> str:
        assert not self.has_left, "segmentation fault"
        return "ipv4:10.0.0.7:4711"

    def invocation_metadata(self) -> None:
        return None


class FinishedContext(LeavingContext):
    """Of a call that ended well."""

    def code(self) -> int:
        return 0


async def test_a_change_is_recorded_with_a_peer_that_has_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    interceptor = AccessInterceptor(None, ClientLimits(0, 0), OpenCalls(1), OpenCalls(1))
    context = LeavingContext()
    call = Call(METHOD, trainer_pb2.CancelRunRequest(run_id="a-run"), context)
    with caplog.at_level(logging.INFO, "elite.audit"), suppress(asyncio.CancelledError):
        async with interceptor.around(call):
            context.has_left = True
            raise asyncio.CancelledError
    (record,) = caplog.records
    found = {name: getattr(record, name) for name in ("peer", "run_id", "outcome", "method")}
    assert found == {
        "peer": "ipv4:10.0.0.7:4711", "run_id": "a-run",
        "outcome": "CANCELLED", "method": "CancelRun",
    }  # fmt: skip


async def test_a_run_that_was_made_is_named_though_the_request_could_not_name_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = trainer_pb2.CreateRunResponse(run=trainer_pb2.Run(run_id="a-new-run"))

    class Interceptor(AccessInterceptor):
        async def served(self) -> Any:
            async def behaviour(request: Any, context: Any) -> Any:  # noqa: ARG001
                return made

            method = "/elite.trainer.v1.TrainerService/CreateRun"
            request = trainer_pb2.CreateRunRequest(request_id="mine")
            return await self._around_unary(method, behaviour)(request, FinishedContext())

    with caplog.at_level(logging.INFO, "elite.audit"):
        interceptor = Interceptor(None, ClientLimits(0, 0), OpenCalls(1), OpenCalls(1))
        assert await interceptor.served() is made
    (record,) = caplog.records
    assert (record.__dict__["run_id"], record.__dict__["outcome"]) == ("a-new-run", "OK")
