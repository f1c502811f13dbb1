"""The error catalogue: every failure a service tells its callers about.

One table maps a reason to its gRPC status, and one exception carries it. The error
interceptor turns the exception into a `google.rpc.Status` with `ErrorInfo` and, for bad
input, `BadRequest`; see https://google.aip.dev/193.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

ERROR_DOMAIN = "elite"

# A gRPC client drops an error whose trailers exceed 8 KiB. The message is in them twice, once
# percent-encoded (up to 3 bytes a byte); binary details may grow by a third (base64).
MESSAGE_LIMIT_BYTES = 1000
VIOLATIONS_LIMIT_BYTES = 2000


class ErrorReason(StrEnum):
    """Stable, machine-readable reasons (`ErrorInfo.reason`)."""

    INVALID_REQUEST = "INVALID_REQUEST"
    NOT_FOUND = "NOT_FOUND"
    CONFLICT = "CONFLICT"
    PRECONDITION_FAILED = "PRECONDITION_FAILED"
    MISSING_MEASUREMENT = "MISSING_MEASUREMENT"
    BUSY = "BUSY"
    RATE_LIMITED = "RATE_LIMITED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    DEVICE_ERROR = "DEVICE_ERROR"
    SERVER_STOPPING = "SERVER_STOPPING"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"


STATUS_CODES: Mapping[ErrorReason, grpc.StatusCode] = {
    ErrorReason.INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorReason.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorReason.CONFLICT: grpc.StatusCode.ALREADY_EXISTS,
    ErrorReason.PRECONDITION_FAILED: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.MISSING_MEASUREMENT: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorReason.BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorReason.RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorReason.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorReason.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    ErrorReason.STORE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorReason.DEVICE_ERROR: grpc.StatusCode.UNAVAILABLE,
    ErrorReason.SERVER_STOPPING: grpc.StatusCode.UNAVAILABLE,
    ErrorReason.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    ErrorReason.INTERNAL: grpc.StatusCode.INTERNAL,
}


@dataclass(frozen=True)
class FieldViolation:
    """One field of a request that is wrong: its path, what is wrong, what to do."""

    field: str
    problem: str
    fix: str = ""

    @property
    def description(self) -> str:
        """Problem and fix in one sentence, as callers see it."""
        return f"{self.problem}: {self.fix}" if self.fix else self.problem


class ServiceError(Exception):
    """A failure with a place in the catalogue. `message` is shown to the caller."""

    def __init__(
        self,
        reason: ErrorReason,
        message: str,
        *,
        violations: Iterable[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})

    @property
    def status_code(self) -> grpc.StatusCode:
        """The gRPC status of this reason."""
        return STATUS_CODES[self.reason]

    def to_status(self) -> status_pb2.Status:
        """The error as `google.rpc.Status` with its details, cut to what a call can carry."""
        info = error_details_pb2.ErrorInfo(
            reason=self.reason.value, domain=ERROR_DOMAIN, metadata=self.metadata
        )
        status = status_pb2.Status(
            code=code_pb2.Code.Value(self.status_code.name),
            message=_cut(self.message, MESSAGE_LIMIT_BYTES),
        )
        status.details.append(_pack(info))
        if self.violations:
            bad_request = error_details_pb2.BadRequest()
            for violation in self.violations:
                description = _cut(violation.description, MESSAGE_LIMIT_BYTES)
                bad_request.field_violations.add(field=violation.field, description=description)
                if bad_request.ByteSize() > VIOLATIONS_LIMIT_BYTES:
                    del bad_request.field_violations[-1]
                    break
            status.details.append(_pack(bad_request))
        return status


def invalid_field(
    field: str, problem: str, fix: str = "", *, reason: ErrorReason = ErrorReason.INVALID_REQUEST
) -> ServiceError:
    """The error for one bad request field: names the field, the problem and the fix."""
    return invalid_fields([FieldViolation(field, problem, fix)], reason=reason)


def invalid_fields(
    violations: Iterable[FieldViolation], *, reason: ErrorReason = ErrorReason.INVALID_REQUEST
) -> ServiceError:
    """The error for several bad request fields."""
    found = tuple(violations)
    message = "; ".join(f"{violation.field}: {violation.description}" for violation in found)
    return ServiceError(reason, message, violations=found)


def _cut(text: str, limit_bytes: int) -> str:
    encoded = text.encode(errors="replace")  # file names may hold lone surrogates
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    return encoded[: limit_bytes - 3].decode(errors="ignore") + "..."


def _pack(message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
