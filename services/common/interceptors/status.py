"""The status a call has ended with, whichever way it ended."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

_BY_NUMBER: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


def status_name(context: Any, error: BaseException | None) -> str:
    """Name of the gRPC status, from the context if it was set, else from the exception."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "CANCELLED"
    code: Any = context.code()
    number: int = code.value[0] if isinstance(code, grpc.StatusCode) else int(code or 0)
    if number:
        return _BY_NUMBER.get(number, "UNKNOWN")
    return "OK" if error is None else "UNKNOWN"
