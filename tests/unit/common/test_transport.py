"""Settings of connections are refused by name before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.transport import (
    ClientTransport,
    TransportError,
    is_local,
    server_credentials,
)


@pytest.mark.parametrize(
    ("variables", "address", "said"),
    [
        ({"TLS_CA": "/none/ca.pem"}, "h:1", "ELITE_CLIENT_TLS_CA: /none/ca.pem: No such file"),
        ({"TLS_CA": "FILE"}, "h:1", "ELITE_CLIENT_TLS_CA: .* is not PEM"),
        ({"TLS_CA": "system", "TLS_KEY": "/k"}, "h:1", "TLS_CERTIFICATE and .*: give both or none"),
        ({"TOKEN_FILE": "/none"}, "127.0.0.1:1", "ELITE_CLIENT_TOKEN_FILE: /none: No such file"),
        ({"TOKEN": "t"}, "trainer.example:443", "trainer.example:443 would go .* unencrypted"),
        ({"TOKEN": "t"}, "10.0.0.7:443", "set ELITE_CLIENT_TLS_CA"),
        ({"TLS_CERT": "/c"}, "h:1", "ELITE_CLIENT_TLS_CERT is unknown: one of ELITE_CLIENT_TLS_CA"),
    ],
)
def test_what_cannot_work_is_refused(
    variables: dict[str, str], address: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a certificate")
    environment = {
        f"ELITE_CLIENT_{name}": str(tmp_path / "file") if value == "FILE" else value
        for name, value in variables.items()
    }
    with pytest.raises(TransportError, match=said):
        ClientTransport.from_environment(environment).open(address)


def test_a_token_may_go_where_something_else_encrypts() -> None:
    transport = ClientTransport(token="t", plaintext_token="1")
    transport.open("10.0.0.7:443").close()


@pytest.mark.parametrize(
    ("address", "local"),
    [("127.0.0.1:1", True), ("localhost:1", True), ("[::1]:1", True), ("unix:/a/b", True),
     ("10.0.0.1:1", False), ("example:1", False), ("[::]:1", False), ("0.0.0.0:1", False)],
)  # fmt: skip
def test_what_stays_on_this_machine(address: str, local: bool) -> None:
    assert is_local(address) is local


def test_halves_of_a_server_certificate(tmp_path: Path) -> None:
    assert server_credentials(None, None, None) is None
    path = tmp_path / "a.pem"
    path.write_text("-----BEGIN X-----")
    with pytest.raises(TransportError, match="tls_certificate and tls_key: give both"):
        server_credentials(path, None, None)
    with pytest.raises(TransportError, match="tls_client_ca: needs tls_certificate"):
        server_credentials(None, None, path)
    with pytest.raises(TransportError, match=r"no pair of certificate and key \("):
        server_credentials(path, path, None)
    with pytest.raises(TransportError, match=r"tls_key: .*none\.pem: No such file"):
        server_credentials(path, tmp_path / "none.pem", None)
