"""Refuses requests that break the rules of their proto."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.common.errors import ErrorReason, ServiceError
from services.common.interceptors.base import AroundInterceptor, Call, Malformed
from services.common.validation import validate


class ValidationInterceptor(AroundInterceptor):
    """Runs before the servicer, so servicers see only requests that keep the rules."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Raises `ServiceError` for a bad request."""
        if isinstance(call.request, Malformed):
            problem = "the bytes are not the method's request message: send what its proto says"
            raise ServiceError(ErrorReason.INVALID_REQUEST, problem)
        validate(call.request)
        yield
