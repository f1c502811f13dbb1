"""Following a run over a stream that breaks: every event once, in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from elite.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from elite_cli.client import CallError, ServiceClient, connect
from elite_cli.watch import RECONNECT_ATTEMPTS, run_events
from services.common.errors import ErrorReason, ServiceError
from services.common.local import serve_locally
from services.common.server import ServiceDefinition
from services.common.settings import ServerSettings


class Trainer(trainer_pb2_grpc.TrainerServiceServicer):  # type: ignore[misc]
    """Has six events and breaks the stream after every second one, as often as told."""

    def __init__(self) -> None:
        self.cursors: list[str] = []
        self.breaks = 0
        self.is_away = False

    async def WatchRun(self, request: trainer_pb2.WatchRunRequest, context: Any) -> Any:  # noqa: N802
        self.cursors.append(request.cursor)
        if request.run_id == "unknown":
            raise ServiceError(ErrorReason.NOT_FOUND, "there is no such run")
        if self.is_away:
            raise ServiceError(ErrorReason.STORE_UNAVAILABLE, "Redis does not answer")
        seen = int(request.cursor.partition("-")[0] or 0)
        for number in range(seen + 1, 7):
            yield trainer_pb2.WatchRunResponse(event={"cursor": f"{number}-0"})
            if number == seen + 2 and self.breaks:
                self.breaks -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")


@pytest.fixture
def servicer() -> Trainer:
    return Trainer()


@pytest.fixture
def trainer(servicer: Trainer, tmp_path: Path) -> Iterator[ServiceClient]:
    definition = ServiceDefinition(
        "elite.trainer.v1.TrainerService",
        "trainer",
        lambda server: trainer_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server),
    )
    settings = ServerSettings(address=f"unix:{tmp_path / 't.sock'}", shutdown_grace_seconds=0)
    with serve_locally(definition, settings) as address:
        yield connect("trainer", address, trainer_pb2_grpc.TrainerServiceStub)


def cursors(trainer: ServiceClient, pauses: list[float], run_id: str = "run") -> list[str]:
    return [response.event.cursor for response in run_events(trainer, run_id, pauses.append)]


@pytest.mark.parametrize("breaks", [0, 1, 2])
def test_every_event_once(trainer: ServiceClient, servicer: Trainer, breaks: int) -> None:
    servicer.breaks = breaks
    pauses: list[float] = []
    assert cursors(trainer, pauses) == [f"{number}-0" for number in range(1, 7)]
    assert servicer.cursors == ["", "2-0", "4-0"][: breaks + 1]
    assert len(pauses) == breaks


def test_it_gives_up_when_the_trainer_stays_away(trainer: ServiceClient, servicer: Trainer) -> None:
    servicer.is_away = True
    pauses: list[float] = []
    with pytest.raises(CallError, match="Redis does not answer"):
        cursors(trainer, pauses)
    assert pauses == [1, 2, 4, 8, 16, 32][:RECONNECT_ATTEMPTS]


def test_a_refusal_is_final(trainer: ServiceClient, servicer: Trainer) -> None:
    with pytest.raises(CallError, match="no such run"):
        cursors(trainer, [], "unknown")
    assert servicer.cursors == [""]
