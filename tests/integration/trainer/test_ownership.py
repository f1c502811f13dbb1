"""Runs belong to the client that created them; an admin may end anybody's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from elite.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from services.common.access import hash_of
from services.common.transport import ClientTransport
from services.trainer.jobs.states import CANCELLED, RESUMING
from tests.support.run_specs import a_spec
from tests.support.trainer_stack import TrainerStack
from tests.support.valkey import Valkey


@pytest.fixture
def guarded(tmp_path: Path, valkey: Valkey) -> Iterator[TrainerStack]:
    stack = TrainerStack(tmp_path, valkey)
    rows = [("alice", "submitter"), ("bob", "submitter"), ("root", "admin"), ("eve", "viewer")]
    path = tmp_path / "tokens.yaml"
    path.write_text("tokens:\n" + "".join(
        f"  - {{name: {name}, role: {role}, sha256: {hash_of(name)}}}\n" for name, role in rows
    ))  # fmt: skip
    stack.start_api(tokens_file=path)
    yield stack
    stack.close()


def stub_of(stack: TrainerStack, name: str) -> Any:
    channel = ClientTransport(token=name).open(stack.address)
    return trainer_pb2_grpc.TrainerServiceStub(channel)


def test_only_the_owner_or_an_admin_ends_a_run(guarded: TrainerStack) -> None:
    alice, bob, root, eve = (stub_of(guarded, name) for name in ("alice", "bob", "root", "eve"))
    request = trainer_pb2.CreateRunRequest(spec=a_spec(guarded.data, "succeed", 3))
    run = alice.CreateRun(request, timeout=10).run
    assert run.submitted_by == "alice"
    of_run = {"run_id": run.run_id}
    for stub, problem in ((bob, "belongs to alice"), (eve, "needs the role submitter")):
        for method, made in (
            ("CancelRun", trainer_pb2.CancelRunRequest),
            ("PauseRun", trainer_pb2.PauseRunRequest),
            ("ResumeRun", trainer_pb2.ResumeRunRequest),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                getattr(stub, method)(made(**of_run), timeout=10)
            assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
            assert problem in refused.value.details()
    assert eve.GetRun(trainer_pb2.GetRunRequest(**of_run), timeout=10).run.submitted_by == "alice"
    assert alice.CancelRun(trainer_pb2.CancelRunRequest(**of_run)).run.state == CANCELLED
    assert root.ResumeRun(trainer_pb2.ResumeRunRequest(**of_run)).run.state == RESUMING
    assert root.CancelRun(trainer_pb2.CancelRunRequest(**of_run)).run.state == CANCELLED
