"""Certificates, at both ends of a connection, and the token a client sends."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc

from services.common.tracing import TRACEPARENT, current_traceparent, is_wanted

# Loopback and private networks are where these services live; a proxy set for the web would
# swallow the calls. While a call is quiet, as a watch of a waiting run, pings tell whether the
# server is there yet.
CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
)
_PREFIX = "ELITE_CLIENT_"


class TransportError(ValueError):
    """A setting of a connection that cannot work; the message names it."""


def server_credentials(
    certificate: Path | None, key: Path | None, client_authority: Path | None
) -> grpc.ServerCredentials | None:
    """None without a certificate: then connections are not encrypted.

    client_authority: whose certificates clients must show (mutual TLS). Raises `TransportError`.
    """
    if certificate is None and key is None:
        if client_authority is not None:
            raise TransportError("tls_client_ca: needs tls_certificate and tls_key too")
        return None
    if certificate is None or key is None:
        raise TransportError("tls_certificate and tls_key: give both or none")
    pair = (_pem("tls_key", key), _pem("tls_certificate", certificate))
    _check_pair(certificate, key)
    authority = _pem("tls_client_ca", client_authority) if client_authority else None
    return grpc.ssl_server_credentials(
        [pair], root_certificates=authority, require_client_auth=authority is not None
    )


@dataclass(frozen=True, slots=True)
class ClientTransport:
    """How clients connect, from `ELITE_CLIENT_*` variables.

    tls_ca: whose certificates servers must show; "system" for those the system trusts. tls_name:
    the name in the server's certificate where it is not that of the address. token_file: holds the
    token; `ELITE_CLIENT_TOKEN` holds it itself.
    """

    tls_ca: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    tls_name: str = ""
    token: str = ""
    token_file: str = ""
    plaintext_token: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ClientTransport:
        """What is set; raises `TransportError` for a variable that is none of ours."""
        given = {
            name.removeprefix(_PREFIX).lower(): value
            for name, value in environment.items()
            if name.startswith(_PREFIX) and value
        }
        unknown = sorted(given.keys() - cls.__slots__)
        if unknown:
            known = ", ".join(_PREFIX + name.upper() for name in cls.__slots__)
            raise TransportError(f"{_PREFIX}{unknown[0].upper()} is unknown: one of {known}")
        return cls(**given)

    def open(self, address: str, options: Any = CHANNEL_OPTIONS) -> grpc.Channel:
        """A channel that connects at its first call. Raises `TransportError`."""
        if self.tls_ca:
            channel = grpc.secure_channel(address, self._credentials(), self._options(options))
        else:
            channel = grpc.insecure_channel(address, options)
        channel = grpc.intercept_channel(channel, _SendTrace()) if is_wanted() else channel
        token = self._token()
        if not token:
            return channel
        if not (self.tls_ca or self.plaintext_token or is_local(address)):
            raise TransportError(
                f"a token for {address} would go over the network unencrypted: set "
                f"{_PREFIX}TLS_CA, or {_PREFIX}PLAINTEXT_TOKEN=1 where something else encrypts"
            )
        return grpc.intercept_channel(channel, _SendHeader("authorization", f"Bearer {token}"))

    def _credentials(self) -> grpc.ChannelCredentials:
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise TransportError(
                f"{_PREFIX}TLS_CERTIFICATE and {_PREFIX}TLS_KEY: give both or none"
            )
        return grpc.ssl_channel_credentials(
            None if self.tls_ca == "system" else self._pem("tls_ca"),
            self._pem("tls_key") if self.tls_key else None,
            self._pem("tls_certificate") if self.tls_certificate else None,
        )

    def _options(self, options: Any) -> list[tuple[str, Any]]:
        name = [("grpc.ssl_target_name_override", self.tls_name)] if self.tls_name else []
        return [*options, *name]

    def _token(self) -> str:
        if self.token_file:
            return _read(_PREFIX + "TOKEN_FILE", Path(self.token_file)).decode().strip()
        return self.token

    def _pem(self, name: str) -> bytes:
        return _pem(_PREFIX + name.upper(), Path(getattr(self, name)))


def open_channel(address: str, options: Any = CHANNEL_OPTIONS) -> grpc.Channel:
    """A channel to a service, as the environment says. Raises `TransportError`."""
    return ClientTransport.from_environment().open(address, options)


def is_local(address: str) -> bool:
    """Whether a connection stays on this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _SendHeader(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
):
    """Adds a header; gRPC's own way for tokens refuses to without TLS, even on loopback."""

    def __init__(self, name: str, value: str) -> None:
        self._name, self._value = name, value

    def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        """Unary calls."""
        return continuation(self._with_header(client_call_details), request)

    def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        """Calls that stream their answers."""
        return continuation(self._with_header(client_call_details), request)

    def _with_header(self, details: Any) -> Any:
        value = self._current()
        sent = [(self._name, value)] if value else []
        return details._replace(metadata=[*(details.metadata or ()), *sent])

    def _current(self) -> str:
        return self._value


class _SendTrace(_SendHeader):
    """Adds the span that is open where the call is made."""

    def __init__(self) -> None:
        super().__init__(TRACEPARENT, "")

    def _current(self) -> str:
        return current_traceparent()


def _pem(name: str, path: Path) -> bytes:
    content = _read(name, path)
    if b"-----BEGIN" not in content:
        raise TransportError(f"{name}: {path} is not PEM: give a file with '-----BEGIN ...'")
    return content


def _check_pair(certificate: Path, key: Path) -> None:
    """gRPC takes any two files, and then cannot listen without saying why."""
    try:
        # With a password at hand OpenSSL does not ask for one at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        why = (getattr(error, "reason", None) or str(error)).lower().replace("_", " ")
        problem = f"{certificate} and {key} are no pair of certificate and key ({why})"
        raise TransportError(f"tls_certificate and tls_key: {problem}") from error


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TransportError(f"{name}: {path}: {error.strerror}") from error
