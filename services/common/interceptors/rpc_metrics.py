"""Counts and times every call."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.common.interceptors.base import AroundInterceptor, Call
from services.common.interceptors.status import status_name
from services.common.metrics import RpcMetrics


class MetricsInterceptor(AroundInterceptor):
    """Feeds `RpcMetrics`; the method label is the short name, as in "Plan"."""

    def __init__(self, metrics: RpcMetrics) -> None:
        self._metrics = metrics

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Observes the call however it ends."""
        started = time.perf_counter()
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            method = call.method.rpartition("/")[2]
            seconds = time.perf_counter() - started
            self._metrics.observe(method, status_name(call.context, error), seconds)
