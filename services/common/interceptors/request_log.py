"""Gives every call a request id and logs its end."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from services.common.interceptors.base import AroundInterceptor, Call
from services.common.interceptors.status import status_name
from services.common.logging import request_id

REQUEST_ID_HEADER = "x-request-id"

# Asked for every few seconds by probes; logged only when debugging.
_QUIET = ("/grpc.health.", "/grpc.reflection.")

logger = logging.getLogger("elite.rpc")


class RequestLogInterceptor(AroundInterceptor):
    """Takes `x-request-id` from the caller, or makes one, and logs method, status and time."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Sets the request id for all logs of this call."""
        sent = dict(call.context.invocation_metadata() or ()).get(REQUEST_ID_HEADER, "")
        token = request_id.set(str(sent)[:128] or uuid.uuid4().hex)
        started = time.perf_counter()
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            level = logging.DEBUG if call.method.startswith(_QUIET) else logging.INFO
            seconds = round(time.perf_counter() - started, 6)
            code = status_name(call.context, error)
            logger.log(
                level, "call", extra={"method": call.method, "code": code, "seconds": seconds}
            )
            # A stream abandoned by its caller is closed in another context: nothing to reset.
            with suppress(ValueError):
                request_id.reset(token)
