"""Tokens and roles: read from a file, strictly; required by methods, by their protos."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from elite.access.v1 import access_pb2
from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2
from elite.trainer.v1 import trainer_pb2
from services.common import access
from services.common.access import Client, TokenFile, TokenFileError
from services.common.errors import ErrorReason, ServiceError

SERVICES = [
    module.DESCRIPTOR.services_by_name[name]
    for module, name in (
        (planner_pb2, "PlannerService"),
        (profiler_pb2, "ProfilerService"),
        (trainer_pb2, "TrainerService"),
    )
]


def entry(token: str, name: str = "alice", role: str = "submitter") -> str:
    return f"  - {{name: {name}, role: {role}, sha256: {access.hash_of(token)}}}\n"


def write(path: Path, *entries: str) -> Path:
    path.write_text("tokens:\n" + "".join(entries))
    return path


def test_a_token_is_known_by_its_hash(tmp_path: Path) -> None:
    token, sha256 = access.new_token()
    assert access.new_token()[0] != token
    tokens = TokenFile(write(tmp_path / "tokens.yaml", entry(token), entry("b", "bob", "admin")))
    assert sha256 in (tmp_path / "tokens.yaml").read_text()
    assert token not in (tmp_path / "tokens.yaml").read_text()
    assert tokens.client(f"Bearer {token}") == Client("alice", access.ROLES["submitter"])
    assert tokens.client("bearer b").role_name == "admin"  # type: ignore[union-attr]
    for wrong in ("", token, f"Basic {token}", f"Bearer {sha256}", "Bearer "):
        assert tokens.client(wrong) is None


def test_the_file_is_read_again_and_a_broken_change_locks_nobody_out(tmp_path: Path) -> None:
    path = write(tmp_path / "tokens.yaml", entry("one"))
    tokens = TokenFile(path)
    write(path, entry("two"))
    os.utime(path, ns=(1, 1))
    assert tokens.client("Bearer one") is None
    assert tokens.client("Bearer two") is not None
    path.write_text("tokens: 7")
    assert tokens.client("Bearer two") is not None
    path.unlink()
    assert tokens.client("Bearer two") is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no list `tokens`"),
        ("tokens: []", "has no list `tokens`"),
        ("tokens: [7]", "tokens[0]: is not a mapping"),
        ("tokens: [{name: A B, role: king, sha256: 12}]", "name: give .*; role: give one of v"),
        ("tokens: [{name: a, role: viewer, sha256: elite_secret}]", "sha256: give the 64 hexa"),
        ("tokens: [{name: 123, role: [viewer], sha256: 12}]", "name: .* in quotes; role: give"),
        ("tokens: [{name: 2026-01-01, role: viewer, sha256: 12}]", "name: give up to 63"),
        ("tokens: [", "tokens_file: .*tokens.yaml"),
    ],
)
def test_a_wrong_file_is_refused_by_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tokens.yaml"
    path.write_text(text)
    with pytest.raises(TokenFileError, match=said.replace("[0]", r"\[0\]")):
        TokenFile(path)
    with pytest.raises(TokenFileError, match="No such file"):
        TokenFile(tmp_path / "none")


def test_every_method_of_ours_says_which_role_it_needs() -> None:
    for service in SERVICES:
        for method in service.methods:
            needed = access.required_role(f"/{service.full_name}/{method.name}")
            is_reading = method.name.startswith(("Get", "List", "Watch", "Plan", "Est", "WhatIf"))
            assert (needed == access_pb2.ROLE_VIEWER) is is_reading, method.full_name
            assert method.GetOptions().Extensions[access_pb2.required_role], method.full_name


@pytest.mark.parametrize("method", ["/elite.planner.v1.PlannerService/None", "/a.B/C", "nonsense"])
def test_what_says_nothing_is_for_admins(method: str) -> None:
    assert access.required_role(method) == access.ADMIN
    assert not access.is_open(method)
    with pytest.raises(ServiceError, match="needs the role admin; bob is submitter") as refused:
        access.authorise(Client("bob", access.ROLES["submitter"]), method)
    assert refused.value.reason == ErrorReason.PERMISSION_DENIED


def test_only_owner_and_admin() -> None:
    access.current_client.set(Client("bob", access.ROLES["submitter"]))
    access.require_owner("bob", "run 1")
    with pytest.raises(ServiceError, match="run 1 belongs to alice: only its owner or an admin"):
        access.require_owner("alice", "run 1")
    access.current_client.set(Client("root", access.ADMIN))
    access.require_owner("alice", "run 1")
    access.current_client.set(access.ANYBODY)
    access.require_owner("alice", "run 1")
