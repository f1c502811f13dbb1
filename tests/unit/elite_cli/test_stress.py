"""The stress test as the command line runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from elite.profiler.v1 import profiler_pb2, profiler_pb2_grpc
from elite_cli import stress
from elite_cli.client import CallError, ServiceClient, connect
from elite_cli.errors import CliError
from services.common.errors import ErrorReason, ServiceError
from services.common.local import serve_locally
from services.common.server import ServiceDefinition
from services.common.settings import ServerSettings


class Profiler(profiler_pb2_grpc.ProfilerServiceServicer):  # type: ignore[misc]
    """Is busy as often as told, then measures two things."""

    def __init__(self) -> None:
        self.busy = 0
        self.has_profile = True

    async def RunStressTest(  # noqa: N802
        self,
        request: profiler_pb2.RunStressTestRequest,
        context: Any,  # noqa: ARG002
    ) -> Any:
        if self.busy:
            self.busy -= 1
            raise ServiceError(ErrorReason.BUSY, "a stress test is running")
        for number, probe in enumerate(("memory", "matmul"), start=1):
            yield profiler_pb2.RunStressTestResponse(
                probe=probe, result="much", completed_probes=number, total_probes=2
            )
        if self.has_profile:
            node = profiler_pb2.NodeProfile(node_name="quick" if request.quick else "thorough")
            yield profiler_pb2.RunStressTestResponse(profile=node)


@pytest.fixture
def servicer(monkeypatch: pytest.MonkeyPatch) -> Profiler:
    monkeypatch.setattr(stress, "BUSY_PAUSE_SECONDS", 0.01)
    return Profiler()


@pytest.fixture
def profiler(servicer: Profiler, tmp_path: Path) -> Iterator[ServiceClient]:
    definition = ServiceDefinition(
        "elite.profiler.v1.ProfilerService",
        "profiler",
        lambda server: profiler_pb2_grpc.add_ProfilerServiceServicer_to_server(servicer, server),
    )
    settings = ServerSettings(address=f"unix:{tmp_path / 'p.sock'}", shutdown_grace_seconds=0)
    with serve_locally(definition, settings) as address:
        yield connect("profiler", address, profiler_pb2_grpc.ProfilerServiceStub)


def test_progress_on_stderr_and_the_profile(
    profiler: ServiceClient, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[profiler_pb2.RunStressTestResponse] = []
    node = stress.run_stress_test(profiler, quick=True, on_message=seen.append)
    assert node.node_name == "quick"
    assert [message.probe for message in seen] == ["memory", "matmul", ""]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == ["  memory: much", "  matmul: much"]


def test_it_waits_for_another_test(
    profiler: ServiceClient, servicer: Profiler, capsys: pytest.CaptureFixture[str]
) -> None:
    servicer.busy = 3
    assert stress.run_stress_test(profiler, quick=False).node_name == "thorough"
    assert capsys.readouterr().err.count("waiting for its end") == 1


def test_it_does_not_wait_for_ever(
    profiler: ServiceClient, servicer: Profiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stress, "BUSY_PATIENCE_SECONDS", 0.0)
    servicer.busy = 1000
    with pytest.raises(CallError, match="a stress test is running"):
        stress.run_stress_test(profiler, quick=True)


def test_a_test_without_a_profile_is_an_error(profiler: ServiceClient, servicer: Profiler) -> None:
    servicer.has_profile = False
    with pytest.raises(CliError, match="ended without a profile"):
        stress.run_stress_test(profiler, quick=True)
