"""A run store on a real server, and runs in any state."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.connection import async_client
from services.trainer.jobs.identifiers import new_run_id
from services.trainer.jobs.states import PENDING, RUNNING, State
from services.trainer.jobs.store import RunStore, Transition
from services.trainer.settings import TrainerSettings
from tests.support.run_specs import a_plan
from tests.support.valkey import Valkey

STREAM_LENGTH = 1000


@asynccontextmanager
async def open_store(valkey: Valkey) -> AsyncIterator[tuple[RunStore, Any]]:
    client = async_client(TrainerSettings(redis_url=valkey.socket_url))
    try:
        yield RunStore(client, STREAM_LENGTH), client
    finally:
        await client.aclose()


async def a_run(
    store: RunStore, *states: State, request_id: str = "", device_class: str = ""
) -> str:
    """Creates a run and walks it through `states`."""
    run = trainer_pb2.Run(run_id=new_run_id(), request_id=request_id, state=PENDING)
    run.device_class = device_class
    run.spec.plan.CopyFrom(a_plan())
    run_id = await store.create(run, "fingerprint")
    assert run_id is not None
    for state in states:
        await store.change(run_id, lambda _, target=state: step(target))
    return run_id


def step(target: State, owner: str = "owner-1") -> Transition:
    changes: dict[str, str | bytes | int] = {"owner": owner} if target == RUNNING else {}
    return Transition(target, "a step", changes, owner=owner, lease_seconds=30)
