"""The error catalogue and what of an error goes over the wire."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from services.common.errors import (
    ERROR_DOMAIN,
    STATUS_CODES,
    ErrorReason,
    FieldViolation,
    ServiceError,
    invalid_field,
    invalid_fields,
)


def travelled(error: ServiceError) -> status_pb2.Status:
    """The status as the other side parses it."""
    return status_pb2.Status.FromString(error.to_status().SerializeToString())


def info_of(status: status_pb2.Status) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


def bad_request_of(status: status_pb2.Status) -> dict[str, str]:
    bad_request = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad_request)
    return {found.field: found.description for found in bad_request.field_violations}


@pytest.mark.parametrize("reason", list(ErrorReason))
def test_every_reason_has_a_status_that_travels(reason: ErrorReason) -> None:
    error = ServiceError(reason, "what happened", metadata={"key": "value"})
    status = travelled(error)
    assert error.status_code is STATUS_CODES[reason]
    assert status.code == error.status_code.value[0]
    assert status.message == "what happened"
    info = info_of(status)
    assert (info.reason, info.domain) == (reason.value, ERROR_DOMAIN)
    assert dict(info.metadata) == {"key": "value"}
    assert len(status.details) == 1  # no BadRequest without violations


def test_status_codes_tell_the_caller_what_to_do() -> None:
    def code(reason: ErrorReason) -> grpc.StatusCode:
        return ServiceError(reason, "").status_code

    assert code(ErrorReason.INVALID_REQUEST) is grpc.StatusCode.INVALID_ARGUMENT
    assert code(ErrorReason.NOT_FOUND) is grpc.StatusCode.NOT_FOUND
    assert code(ErrorReason.STORE_UNAVAILABLE) is grpc.StatusCode.UNAVAILABLE
    assert code(ErrorReason.SERVER_STOPPING) is grpc.StatusCode.UNAVAILABLE
    assert code(ErrorReason.BUSY) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert grpc.StatusCode.OK not in STATUS_CODES.values()


def test_one_bad_field() -> None:
    error = invalid_field("model.model_id", "is unknown", "an id from ListModels")
    assert error.message == "model.model_id: is unknown: an id from ListModels"
    assert str(error) == error.message
    assert bad_request_of(travelled(error)) == {
        "model.model_id": "is unknown: an id from ListModels"
    }


def test_several_bad_fields_keep_their_order_and_reason() -> None:
    error = invalid_fields(
        (FieldViolation(name, "is missing") for name in ("b", "a")),  # read once only
        reason=ErrorReason.MISSING_MEASUREMENT,
    )
    status = travelled(error)
    assert status.message == "b: is missing; a: is missing"
    assert list(bad_request_of(status)) == ["b", "a"]
    assert info_of(status).reason == "MISSING_MEASUREMENT"


@pytest.mark.parametrize("letter", ["x", "é", "\U0001d518"])
def test_an_error_stays_below_what_a_grpc_client_accepts(letter: str) -> None:
    """8 KiB of trailers: the message percent-encoded, and the details in base64."""
    violations = [FieldViolation(f"items[{index}].name", letter * 400) for index in range(500)]
    error = invalid_fields(violations)
    status = travelled(error)
    percent_encoded = 3 * len(status.message.encode())
    assert percent_encoded + status.ByteSize() * 4 / 3 < 8 * 1024 - 256
    assert status.message.endswith("...")
    named = bad_request_of(status)
    assert "items[0].name" in named
    assert len(named) < len(violations)


def test_text_that_is_not_valid_unicode_travels() -> None:
    """File names may hold bytes that Python shows as lone surrogates."""
    status = travelled(invalid_field("path", "no such folder: caf\udce9"))
    assert status.message.startswith("path: no such folder: caf")
