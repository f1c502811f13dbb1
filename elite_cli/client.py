"""Calls to one service: deadlines on all of them, and errors people can act on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from elite_cli.errors import CliError, ExitCode
from services.common.transport import TransportError, open_channel

# Where gRPC libraries of all languages put google.rpc.Status.
STATUS_DETAILS_KEY = "grpc-status-details-bin"

DEFAULT_DEADLINE_SECONDS = 30.0
DEADLINE_SECONDS = {
    # Walks the data folder before it accepts the run.
    "CreateRun": 120.0,
    "RunStressTest": 1800.0,
    # Watching is taken up again from the cursor when it ends.
    "WatchRun": 900.0,
}

_BAD_INPUT = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
)
_UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class CallError(CliError):
    """A call that failed, with what `google.rpc.Status` said about it.

    `reason` is the catalogue's (`ErrorReason`), empty when the answer did not come from one of
    our services; `fields` are the request fields that are wrong.
    """

    def __init__(
        self, code: grpc.StatusCode, reason: str, fields: tuple[str, ...], lines: tuple[str, ...]
    ) -> None:
        super().__init__(*lines, exit_code=_exit_code(code))
        self.code = code
        self.reason = reason
        self.fields = fields


def _exit_code(code: grpc.StatusCode) -> ExitCode:
    if code in _BAD_INPUT:
        return ExitCode.BAD_INPUT
    return ExitCode.UNAVAILABLE if code in _UNAVAILABLE else ExitCode.FAILURE


@dataclass(frozen=True)
class ServiceClient:
    """One service at one address."""

    name: str
    address: str
    stub: Any
    channel: grpc.Channel

    def call(self, method: str, request: Message) -> Any:
        """The answer of a unary method. Raises `CallError`."""
        deadline = DEADLINE_SECONDS.get(method, DEFAULT_DEADLINE_SECONDS)
        try:
            return getattr(self.stub, method)(request, timeout=deadline)
        except grpc.RpcError as error:
            raise self._call_error(method, error) from error

    def stream(self, method: str, request: Message) -> Iterator[Any]:
        """The answers of a streaming method. Raises `CallError`; cancelled when left early."""
        deadline = DEADLINE_SECONDS.get(method, DEFAULT_DEADLINE_SECONDS)
        call = getattr(self.stub, method)(request, timeout=deadline)
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._call_error(method, error) from error
        finally:
            call.cancel()

    def _call_error(self, method: str, error: Any) -> CallError:
        code: grpc.StatusCode = error.code()
        status = status_of(error)
        if status is None:
            return CallError(code, "", (), (self._transport_problem(method, code, error),))
        reason, violations = _details(status)
        lines = tuple(f"{violation.field}: {violation.description}" for violation in violations)
        fields = tuple(violation.field for violation in violations)
        return CallError(code, reason, fields, lines or (status.message,))

    def _transport_problem(self, method: str, code: grpc.StatusCode, error: Any) -> str:
        """An error that gRPC itself made: it never reached our code."""
        where = f"{self.name} at {self.address}"
        details = str(error.details() or "").strip()
        if code == grpc.StatusCode.UNAVAILABLE:
            if "handshake" in details.lower() or "certificate" in details.lower():
                return f"{where}: no encrypted connection ({details}): look at ELITE_CLIENT_TLS_*"
            return f"{where}: cannot be reached: check the address and that the service is up"
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            seconds = DEADLINE_SECONDS.get(method, DEFAULT_DEADLINE_SECONDS)
            return f"{where}: {method} did not answer within {seconds:.0f} s: look at its log"
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            return (
                f"{where}: the request is larger than the service takes ({details}): "
                "send less, or raise max_message_bytes in its settings"
            )
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return f"{where}: has no {method}: is that the {self.name}'s address?"
        return f"{where}: {method}: {code.name}: {details}"


def status_of(error: Any) -> status_pb2.Status | None:
    """The `google.rpc.Status` an RPC error carries; None when it carries none."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY:
            return status_pb2.Status.FromString(value)
    return None


def _details(status: status_pb2.Status) -> tuple[str, list[Any]]:
    reason, violations = "", []
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason = info.reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad_request = error_details_pb2.BadRequest()
            detail.Unpack(bad_request)
            violations = list(bad_request.field_violations)
    return reason, violations


def connect(name: str, address: str, make_stub: Callable[[grpc.Channel], Any]) -> ServiceClient:
    """A client of the service called `name`; connects at the first call."""
    try:
        channel = open_channel(address)
    except TransportError as error:
        raise CliError(str(error), exit_code=ExitCode.BAD_INPUT) from error
    return ServiceClient(name, address, make_stub(channel), channel)
