"""Turns exceptions into `google.rpc.Status`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
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

    request_streams = True

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Aborts the call with the status of whatever was raised."""
        try:
            yield
        except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit):
            raise
        except ServiceError as error:
            await _abort(call, error)
        except Exception as error:
            await _abort(call, _not_implemented(call, error) or _unexpected(call))


def _not_implemented(call: Call, error: Exception) -> ServiceError | None:
    """Of a method that only the protos have: the generated base class sets the code and raises."""
    is_set = call.context.code() == grpc.StatusCode.UNIMPLEMENTED
    if not (isinstance(error, NotImplementedError) and is_set):
        return None
    method = call.method.rpartition("/")[2]
    message = f"this server has no {method}: is it of another version than the caller?"
    return ServiceError(ErrorReason.UNIMPLEMENTED, message)


def _unexpected(call: Call) -> ServiceError:
    """For what nobody foresaw; to be called while the exception is handled."""
    logger.exception("unexpected error", extra={"method": call.method})
    known_as = request_id.get()
    message = f"internal error; the service's log has the details under {known_as}"
    return ServiceError(ErrorReason.INTERNAL, message, metadata={"request_id": known_as})


async def _abort(call: Call, error: ServiceError) -> None:
    status = error.to_status()
    trailers = ((STATUS_DETAILS_KEY, status.SerializeToString()),)
    await call.context.abort(error.status_code, status.message, trailers)
