"""Who calls, and what they may: tokens, roles, and the role each method needs.

A token is 32 random bytes, so a plain SHA-256 of it can be kept: there is nothing to guess, and no
salt or slow hash would add anything. The file of tokens is read again when it changes.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import descriptor_pool

from elite.access.v1 import access_pb2
from services.common.errors import ErrorReason, ServiceError

logger = logging.getLogger("elite.access")

Role = access_pb2.Role
ADMIN = access_pb2.ROLE_ADMIN
ROLES: Mapping[str, Role] = {
    "viewer": access_pb2.ROLE_VIEWER,
    "submitter": access_pb2.ROLE_SUBMITTER,
    "admin": ADMIN,
}
_TOKEN_BYTES = 32
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,62}")
_SCHEME = "bearer "
# Probes have no token; the protos that reflection shows are public.
_OPEN = ("/grpc.health.", "/grpc.reflection.")


class TokenFileError(ValueError):
    """A file of tokens that cannot be read; the message names the file, the place and the fix."""


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody who may call. name: empty where nobody needs a token."""

    name: str
    role: Role

    @property
    def role_name(self) -> str:
        """As it stands in the file of tokens."""
        return next(name for name, role in ROLES.items() if role == self.role)


ANYBODY = Client("", ADMIN)
current_client: ContextVar[Client] = ContextVar("current_client", default=ANYBODY)


def new_token() -> tuple[str, str]:
    """A token, and the hash of it that the file of tokens has."""
    token = "elite_" + secrets.token_urlsafe(_TOKEN_BYTES)
    return token, hash_of(token)


def hash_of(token: str) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(token.encode()).hexdigest()


class TokenFile:
    """The clients by the hashes of their tokens, from a YAML file.

    `tokens:` has a list of `{name, role, sha256}`; a name may have several, so that a token can be
    replaced while both are good. Raises `TokenFileError` when it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_at = self._changed_at()
        self._clients = _read(path)

    def client(self, authorization: str) -> Client | None:
        """Whoever has the token of an `authorization` header; None for no or an unknown token."""
        self._read_again()
        if not authorization.lower().startswith(_SCHEME):
            return None
        return self._clients.get(hash_of(authorization[len(_SCHEME) :].strip()))

    def _read_again(self) -> None:
        """A change that breaks the file does not lock out those it had before."""
        try:
            changed_at = self._changed_at()
            if changed_at != self._read_at:
                self._read_at = changed_at
                self._clients = _read(self._path)
        except TokenFileError:
            logger.exception("the tokens of before stay good")

    def _changed_at(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise TokenFileError(f"tokens_file: {self._path}: {error.strerror}") from error
        return status.st_mtime_ns, status.st_ino


def _read(path: Path) -> dict[str, Client]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TokenFileError(f"tokens_file: {path}: {error}") from error
    rows = document.get("tokens") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not rows:
        fix = "`elite tokens new NAME --role viewer` prints an entry"
        raise TokenFileError(f"tokens_file: {path}: has no list `tokens`: {fix}")
    clients = {}
    for number, row in enumerate(rows):
        problems = list(_problems(row))
        if problems:
            raise TokenFileError(f"tokens_file: {path}: tokens[{number}]: {'; '.join(problems)}")
        clients[row["sha256"]] = Client(row["name"], ROLES[row["role"]])
    return clients


def is_client_name(name: str) -> bool:
    """Whether the file of tokens may have it."""
    return _NAME.fullmatch(name) is not None


def _problems(row: Any) -> Iterator[str]:
    if not isinstance(row, dict):
        yield "is not a mapping with name, role and sha256"
        return
    name = row.get("name")
    # YAML reads 123 and 2026-01-01 as something else than text.
    if not (isinstance(name, str) and is_client_name(name)):
        yield "name: give up to 63 of a-z, 0-9, '.', '_', '@' and '-'; a number in quotes"
    if str(row.get("role")) not in ROLES:
        yield f"role: give one of {', '.join(ROLES)}"
    if not _SHA256.fullmatch(str(row.get("sha256"))):
        yield "sha256: give the 64 hexadecimal digits that `elite tokens new` prints"


def is_open(method: str) -> bool:
    """Whether a method needs no token: "/grpc.health.v1.Health/Check"."""
    return method.startswith(_OPEN)


@cache
def required_role(method: str) -> Role:
    """The role that a full method name needs, from its proto; admin where the proto says none."""
    service, _, name = method.strip("/").rpartition("/")
    try:
        found = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    except KeyError:
        return ADMIN
    options: Any = found.GetOptions()
    return options.Extensions[access_pb2.required_role] or ADMIN


def authorise(client: Client | None, method: str) -> Client:
    """The client, if it may call. Raises `ServiceError`: UNAUTHENTICATED, PERMISSION_DENIED."""
    if client is None:
        fix = "set ELITE_CLIENT_TOKEN_FILE, or send the header 'authorization: Bearer TOKEN'"
        raise ServiceError(ErrorReason.UNAUTHENTICATED, f"no token that is known here: {fix}")
    needed = required_role(method)
    if client.role < needed:
        needs = Client("", needed).role_name
        problem = f"{method.rpartition('/')[2]} needs the role {needs}"
        message = f"{problem}; {client.name} is {client.role_name}: ask an admin for another token"
        raise ServiceError(ErrorReason.PERMISSION_DENIED, message)
    return client


def require_owner(owner: str, what: str) -> None:
    """Raises `ServiceError` (PERMISSION_DENIED) unless the caller made it, or is an admin."""
    client = current_client.get()
    if client.role < ADMIN and client.name != owner:
        message = f"{what} belongs to {owner or 'nobody'}: only its owner or an admin may do that"
        raise ServiceError(ErrorReason.PERMISSION_DENIED, message)
