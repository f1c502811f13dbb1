"""What all interceptors share: one coroutine around a call, unary or streaming."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from typing import Any, ClassVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from services.common.errors import ErrorReason, ServiceError


@dataclass
class Call:
    """One call as an interceptor sees it. `response` is there once a unary call was answered."""

    method: str  # "/elite.planner.v1.PlannerService/Plan"
    request: Message | Malformed
    context: Any  # grpc.aio.ServicerContext; its stubs miss half its methods
    response: Message | None = None


class Malformed:
    """Stands for a request whose bytes are no message; see `ValidationInterceptor`."""


def malformed() -> ServiceError:
    """The refusal of such a request."""
    problem = "the bytes are not the method's request message: send what its proto says"
    return ServiceError(ErrorReason.INVALID_REQUEST, problem)


class _Decode:
    """A deserializer that tells of bytes it cannot read instead of raising.

    gRPC would end the call as UNKNOWN, with the name of the exception, before any interceptor.
    """

    def __init__(self, decode: Callable[[bytes], Any]) -> None:
        self._decode = decode

    def __call__(self, data: bytes) -> Any:
        try:
            return self._decode(data)
        except (DecodeError, ValueError):
            return Malformed()


def _decoding(decode: Any) -> _Decode:
    return decode if isinstance(decode, _Decode) else _Decode(decode)


def _refusing_malformed(behaviour: Any) -> Any:
    async def readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The caller's requests, up to one that cannot be read."""
        async for request in requests:
            if isinstance(request, Malformed):
                raise malformed()
            yield request

    return lambda requests, context: behaviour(readable(requests), context)


class AroundInterceptor(grpc.aio.ServerInterceptor, ABC):
    """Runs `around(call)` around every call with a single request.

    Calls that stream requests (only server reflection here) pass through untouched, but where
    `request_streams` says otherwise: then the call's request is the stream of them.
    """

    request_streams: ClassVar[bool] = False

    @abstractmethod
    def around(self, call: Call) -> AbstractAsyncContextManager[None]:
        """Entered before the servicer runs, left when the call has ended."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handler the next interceptor, or the servicer, gives."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or handler.request_streaming:
            return self._streaming(method, handler) if handler else None
        rebuild = {
            "request_deserializer": _decoding(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            behaviour = handler.unary_stream
            # A coroutine function writes through its context, as Health.Watch does.
            writes_itself = inspect.iscoroutinefunction(behaviour)
            wrap = self._around_unary if writes_itself else self._around_stream
            stream = wrap(method, behaviour)
            return grpc.unary_stream_rpc_method_handler(stream, **rebuild)
        unary = self._around_unary(method, handler.unary_unary)
        return grpc.unary_unary_rpc_method_handler(unary, **rebuild)

    def _streaming(self, method: str, handler: Any) -> Any:
        if not (self.request_streams and handler.response_streaming):
            return handler
        behaviour = handler.stream_stream
        if not isinstance(handler.request_deserializer, _Decode):  # the innermost interceptor
            behaviour = _refusing_malformed(behaviour)
        return grpc.stream_stream_rpc_method_handler(
            self._around_stream(method, behaviour),
            request_deserializer=_decoding(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _around_unary(self, method: str, behaviour: Any) -> Any:
        async def wrapped(request: Message, context: Any) -> Any:
            """The method, inside the interceptor."""
            call = Call(method, request, context)
            async with self.around(call):
                call.response = await behaviour(request, context)
            return call.response

        return wrapped

    def _around_stream(self, method: str, behaviour: Any) -> Any:
        async def wrapped(request: Message, context: Any) -> AsyncIterator[Any]:
            """The method's responses, inside the interceptor; closed when the caller leaves."""
            async with (
                self.around(Call(method, request, context)),
                aclosing(behaviour(request, context)) as responses,
            ):
                async for response in responses:
                    yield response

        return wrapped
