"""Encryption, tokens, roles, limits and the audit log, against a real server."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from elite.planner.v1 import planner_pb2 as pb
from elite.planner.v1 import planner_pb2_grpc
from services.common import access
from services.common.local import serve_locally
from services.common.transport import ClientTransport, TransportError
from tests.integration.common.fake_planner import FULL_NAME, Planner, good_request, settings

ROLES = ("viewer", "submitter", "admin")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities; server, client and stranger certificates."""
    folder = tmp_path_factory.mktemp("pki")
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    other.cert_pem.write_to_path(str(folder / "other-ca.pem"))
    issued = {
        "server": authority.issue_cert("trainer.test", "127.0.0.1"),
        "client": authority.issue_cert("client@trainer.test"),
        "stranger": other.issue_cert("stranger@trainer.test"),
    }
    for name, certificate in issued.items():
        certificate.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        certificate.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
    return folder


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, Any]:
    """A token of every role, and the settings of a server that knows them."""
    path = tmp_path / "tokens.yaml"
    rows = [f"  - {{name: {r}-1, role: {r}, sha256: {access.hash_of(r)}}}\n" for r in ROLES]
    path.write_text("tokens:\n" + "".join(rows))
    return {"tokens_file": path}


@contextmanager
def served(transport: ClientTransport, **others: Any) -> Iterator[grpc.Channel]:
    with serve_locally(Planner().definition(), settings(**others)) as address:
        channel = transport.open(address)
        yield channel
        channel.close()


def list_tiers(channel: grpc.Channel) -> grpc.StatusCode:
    """A reading call's end."""
    return ends(planner_pb2_grpc.PlannerServiceStub(channel).ListTiers, pb.ListTiersRequest())


def ends(method: Any, request: Any) -> grpc.StatusCode:
    try:
        method(request, timeout=10)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def test_connections_are_encrypted(pki: Path) -> None:
    server = {"tls_certificate": pki / "server.pem", "tls_key": pki / "server.key"}
    for transport, code in (
        (ClientTransport(tls_ca=f"{pki}/ca.pem"), grpc.StatusCode.OK),
        (ClientTransport(tls_ca=f"{pki}/ca.pem", tls_name="trainer.test"), grpc.StatusCode.OK),
        (ClientTransport(tls_ca=f"{pki}/other-ca.pem"), grpc.StatusCode.UNAVAILABLE),
        (ClientTransport(tls_ca=f"{pki}/ca.pem", tls_name="x.test"), grpc.StatusCode.UNAVAILABLE),
        (ClientTransport(), grpc.StatusCode.UNAVAILABLE),
    ):
        with served(transport, **server) as channel:
            assert list_tiers(channel) == code, transport


def test_a_key_of_another_certificate_is_named(pki: Path) -> None:
    """gRPC says only that it cannot listen, which sounds like a port that is taken."""
    server = {"tls_certificate": pki / "server.pem", "tls_key": pki / "stranger.key"}
    with (
        pytest.raises(TransportError, match=r"stranger\.key are no pair .*key values mismatch"),
        served(ClientTransport(), **server),
    ):
        pass


@pytest.mark.parametrize(
    ("shows", "code"),
    [("client", grpc.StatusCode.OK), ("stranger", grpc.StatusCode.UNAVAILABLE),
     ("", grpc.StatusCode.UNAVAILABLE)],
)  # fmt: skip
def test_clients_show_certificates(pki: Path, shows: str, code: grpc.StatusCode) -> None:
    server = {"tls_certificate": pki / "server.pem", "tls_key": pki / "server.key"}
    own = {"tls_certificate": f"{pki}/{shows}.pem", "tls_key": f"{pki}/{shows}.key"}
    transport = ClientTransport(tls_ca=f"{pki}/ca.pem", **(own if shows else {}))
    with served(transport, tls_client_ca=pki / "ca.pem", **server) as channel:
        assert list_tiers(channel) == code


@pytest.mark.parametrize(
    ("token", "reads", "changes"),
    [
        ("", grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAUTHENTICATED),
        ("guess", grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAUTHENTICATED),
        ("viewer", grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED),
        # The method is not there, which only those who may call it learn.
        ("submitter", grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT),
        ("admin", grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_roles(
    tokens: dict[str, Any], token: str, reads: grpc.StatusCode, changes: grpc.StatusCode
) -> None:
    with served(ClientTransport(token=token), **tokens) as channel:
        stub = planner_pb2_grpc.PlannerServiceStub(channel)
        assert list_tiers(channel) == reads
        assert ends(stub.ReportOutcome, pb.ReportOutcomeRequest()) == changes


def test_who_may_not_learns_nothing_of_the_request(tokens: dict[str, Any]) -> None:
    """A request that is wrong as well: access comes first."""
    with served(ClientTransport(), **tokens) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            planner_pb2_grpc.PlannerServiceStub(channel).Plan(pb.PlanRequest(), timeout=10)
        assert "ELITE_CLIENT_TOKEN_FILE" in (refused.value.details() or "")
        assert "machine" not in (refused.value.details() or "")


def test_probes_need_no_token(tokens: dict[str, Any]) -> None:
    with served(ClientTransport(), **tokens) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=FULL_NAME), timeout=10
        )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_who_needs_no_token_cannot_take_all_the_places(tokens: dict[str, Any]) -> None:
    limits = {"max_client_concurrent_requests": 2, "max_client_requests_per_second": 0.5}
    with served(ClientTransport(token="viewer"), **tokens, **limits) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=FULL_NAME)
        watches = [health.Watch(request, timeout=20) for _ in range(2)]
        assert [next(watch).status for watch in watches] == [
            health_pb2.HealthCheckResponse.SERVING
        ] * 2
        assert ends(lambda *_, timeout: list(health.Watch(request, timeout=timeout)), None) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED
        )
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        assert ends(lambda *_, timeout: next(reflection.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=timeout
        )), None) == grpc.StatusCode.RESOURCE_EXHAUSTED  # fmt: skip
        assert [ends(health.Check, request) for _ in range(5)] == [grpc.StatusCode.OK] * 5
        assert list_tiers(channel) == grpc.StatusCode.OK
        for watch in watches:
            watch.cancel()


def test_watches_of_one_connection_leave_room_for_others_by_default() -> None:
    """Without any limit for one client."""
    with served(ClientTransport(), max_concurrent_requests=8) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=FULL_NAME)
        watches = [health.Watch(request, timeout=20) for _ in range(40)]
        refusals = []
        for watch in watches:
            try:
                assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            except grpc.RpcError as error:
                refusals.append(error)
        assert len(refusals) == 38
        for refusal in refusals:
            assert refusal.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            status = rpc_status.from_call(refusal)
            assert status is not None, "gRPC's own refusal"
            assert "2 watches of health" in status.message
        assert list_tiers(channel) == grpc.StatusCode.OK
        assert ends(health.Check, request) == grpc.StatusCode.OK
        for watch in watches:
            watch.cancel()


@pytest.mark.parametrize("on", [True, False])
def test_reflection_can_be_switched_off(on: bool) -> None:
    with served(ClientTransport(), reflection=on) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        code = ends(lambda request, timeout: list(
            stub.ServerReflectionInfo(request, timeout=timeout)), asked)  # fmt: skip
        assert (code == grpc.StatusCode.OK) is on


def test_a_client_that_asks_too_often_waits_and_others_do_not(tokens: dict[str, Any]) -> None:
    limits = {"max_client_requests_per_second": 2.0, **tokens}
    with serve_locally(Planner().definition(), settings(**limits)) as address:
        one, other = (ClientTransport(token=name).open(address) for name in ("viewer", "admin"))
        codes = [list_tiers(one) for _ in range(8)]
        assert codes[:4] == [grpc.StatusCode.OK] * 4
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
        assert list_tiers(other) == grpc.StatusCode.OK
        for channel in (one, other):
            channel.close()


def test_every_change_is_recorded_and_no_token_is(
    tokens: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for token in ("viewer", "submitter", "wrong-token"):
        with served(ClientTransport(token=token), **tokens) as channel:
            stub = planner_pb2_grpc.PlannerServiceStub(channel)
            ends(stub.ReportOutcome, pb.ReportOutcomeRequest(run_id="run-7"))
            ends(stub.Plan, good_request())
    changes = [vars(record) for record in caplog.records if record.name == "elite.audit"]
    assert [(row["client"], row["outcome"]) for row in changes] == [
        ("viewer-1", "PERMISSION_DENIED"),
        ("submitter-1", "INVALID_REQUEST"),
        ("unknown", "UNAUTHENTICATED"),
    ]
    assert {(row["method"], row["run_id"]) for row in changes} == {("ReportOutcome", "run-7")}
    text = json.dumps([vars(record) for record in caplog.records], default=str)
    assert "wrong-token" not in text
    assert "Bearer" not in text
