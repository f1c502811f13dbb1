"""Turns exceptions into `google.rpc.Status`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio

from services.common.errors import ErrorReason, ServiceError
from services.common.interceptors.base import AroundInterceptor, Call
from services.common.logging import request_id

logger = logging.getLogger("elite.rpc")

# Where gRPC libraries of all languages look for google.rpc.Status.
STATUS_DETAILS_KEY = "grpc-status-details-bin"


class ErrorStatusInterceptor(AroundInterceptor):
    """A `ServiceError` reaches the caller with its details; anything else as INTERNAL.

    The text of an unexpected exception may hold paths and secrets: it goes to the log, and the
    caller gets the request id to look it up.
    """

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Aborts the call with the status of whatever was raised."""
        try:
            yield
        except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit):
            raise
        except ServiceError as error:
            await _abort(call, error)
        except Exception:
            logger.exception("unexpected error", extra={"method": call.method})
            known_as = request_id.get()
            message = f"internal error; the service's log has the details under {known_as}"
            metadata = {"request_id": known_as}
            await _abort(call, ServiceError(ErrorReason.INTERNAL, message, metadata=metadata))


async def _abort(call: Call, error: ServiceError) -> None:
    status = error.to_status()
    trailers = ((STATUS_DETAILS_KEY, status.SerializeToString()),)
    await call.context.abort(error.status_code, status.message, trailers)
