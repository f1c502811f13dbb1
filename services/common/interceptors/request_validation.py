"""Refuses requests that break the rules of their proto."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.common.interceptors.base import AroundInterceptor, Call, Malformed, malformed
from services.common.validation import validate


class ValidationInterceptor(AroundInterceptor):
    """Runs before the servicer, so servicers see only requests that keep the rules."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Raises `ServiceError` for a bad request."""
        if isinstance(call.request, Malformed):
            raise malformed()
        validate(call.request)
        yield
