"""Who calls, whether they may, and how often; and a record of every change."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from elite.access.v1 import access_pb2
from services.common.access import (
    ANYBODY,
    Client,
    TokenFile,
    authorise,
    current_client,
    is_open,
    required_role,
)
from services.common.client_limits import ClientLimits, OpenCalls
from services.common.errors import ServiceError
from services.common.interceptors.base import AroundInterceptor, Call
from services.common.interceptors.status import status_name
from services.common.logging import AUDIT_LOGGER

audit = logging.getLogger(AUDIT_LOGGER)

# Of those that need no token.
_STAY_OPEN = ("/grpc.health.v1.Health/Watch", "/ServerReflectionInfo")


class AccessInterceptor(AroundInterceptor):
    """Before the request is looked at. Without a file of tokens anybody may do anything.

    Probes are not counted among a server's open calls: a full one is alive. Those that stay open
    have a count of their own, so that they leave room for probes that ask.
    """

    request_streams = True

    def __init__(
        self,
        tokens: TokenFile | None,
        limits: ClientLimits,
        open_calls: OpenCalls,
        open_watches: OpenCalls,
    ) -> None:
        self._tokens, self._limits = tokens, limits
        self._open_calls, self._open_watches = open_calls, open_watches

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Sets the client for the length of the call. Raises `ServiceError` when it may not."""
        # Asked for now: grpcio crashes when it is asked once the client has gone.
        peer = str(call.context.peer())
        if is_open(call.method):
            with self._limits_of_watching(call, peer):
                yield
            return
        client = self._client(call)
        error: BaseException | None = None
        try:
            client = authorise(client, call.method)
            current_client.set(client)  # a call is a task of its own
            with self._open_calls.one_more(), self._limits.call_of(client.name or _host(peer)):
                yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            if required_role(call.method) > access_pb2.ROLE_VIEWER:
                _record(call, client, peer, error)

    @contextmanager
    def _limits_of_watching(self, call: Call, peer: str) -> Iterator[None]:
        """Probes ask as often as they like. Calls that stay open are counted, token or not."""
        if not call.method.endswith(_STAY_OPEN):
            yield
            return
        host = f"{_host(peer)} watches"
        with self._open_watches.one_more(), self._limits.call_of(host, any_rate=True):
            yield

    def _client(self, call: Call) -> Client | None:
        if self._tokens is None:
            return ANYBODY
        sent = dict(call.context.invocation_metadata() or ()).get("authorization", "")
        return self._tokens.client(str(sent))


def _record(call: Call, client: Client | None, peer: str, error: BaseException | None) -> None:
    known = error.reason.value if isinstance(error, ServiceError) else ""
    audit.info("change", extra={
        "method": call.method.rpartition("/")[2],
        "client": client.name if client else "unknown",
        "peer": peer,
        "run_id": _run_id(call),
        "outcome": known or status_name(call.context, error),
    })  # fmt: skip


def _run_id(call: Call) -> str:
    """Of the run that the request names, or that the answer tells of: that of CreateRun."""
    named: str = getattr(call.request, "run_id", "")
    return named or getattr(getattr(call.response, "run", None), "run_id", "")


def _host(peer: str) -> str:
    """Of whom nothing else is known: "ipv4:10.0.0.7"."""
    return peer.rpartition(":")[0]
