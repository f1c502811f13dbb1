"""A span for every call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.common.access import is_open
from services.common.interceptors.base import AroundInterceptor, Call
from services.common.logging import request_id
from services.common.tracing import TRACEPARENT, span


class TracingInterceptor(AroundInterceptor):
    """Under the caller's span, when the call brings one. Probes have none."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Opens the span."""
        if is_open(call.method):
            yield
            return
        parent = str(dict(call.context.invocation_metadata() or ()).get(TRACEPARENT, ""))
        name = call.method.lstrip("/")
        with span(name, parent, kind="SERVER", request_id=request_id.get()):
            yield
