"""`elite plan` and `elite estimate` against a planner that tells what it heard."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from elite.planner.v1 import planner_pb2 as pb
from elite.planner.v1 import planner_pb2_grpc
from elite_cli.main import main
from tests.support import plan_responses as made

CARD = ("--gpu", "rtx-3090", "--host-ram", "64GiB")


class RecordingPlanner(planner_pb2_grpc.PlannerServiceServicer):
    """Answers as it is told and keeps the last request."""

    def __init__(self) -> None:
        self.fits = True
        self.request: Any = None

    def Plan(self, request: pb.PlanRequest, context: Any) -> pb.PlanResponse:  # noqa: N802, ARG002
        self.request = request
        return made.plan_response(highest=8 if self.fits else 0)

    def Estimate(self, request: pb.EstimateRequest, context: Any) -> pb.EstimateResponse:  # noqa: N802, ARG002
        self.request = request
        return made.estimate_response(fits=self.fits)

    def WhatIf(self, request: pb.WhatIfRequest, context: Any) -> pb.WhatIfResponse:  # noqa: N802, ARG002
        self.request = request
        return made.what_if_response(fitting=2 if self.fits else 0)


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingPlanner]:
    servicer = RecordingPlanner()
    server = grpc.server(ThreadPoolExecutor(1))
    planner_pb2_grpc.add_PlannerServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("ELITE_CLI_PLANNER_ADDRESS", f"127.0.0.1:{port}")
    yield servicer
    server.stop(None)


def test_options_reach_the_fields(planner: RecordingPlanner) -> None:
    arguments = [
        "plan", "--model", "m", *CARD, "--disk", "1TiB", "--max-step-seconds", "2h",
        "--max-run-time", "3d", "--allow", "activations-4bit", "--allow", "other",
        "--steps", "7", "--accumulate", "4", "--stage", "3:10",
        "--stage", "5:20", "--rank", "16", "--target-modules", "q_proj, v_proj",
        "--adapter-dtype", "float32", "--dropout", "0.1", "--explain",
    ]  # fmt: skip
    assert main(arguments) == 0
    heard = planner.request
    assert heard.machine.hypothetical.disk_free_bytes == 2**40
    assert heard.constraints == pb.Constraints(
        max_step_seconds=7200, max_run_seconds=259200,
        allowed_lossy_ids=["activations-4bit", "other"],
    )  # fmt: skip
    assert heard.schedule == pb.Schedule(
        steps=7, gradient_accumulation_steps=4,
        curriculum=[pb.CurriculumStage(tier=3, steps=10), pb.CurriculumStage(tier=5, steps=20)],
    )  # fmt: skip
    assert heard.adapters == pb.Adapters(
        rank=16, target_modules=["q_proj", "v_proj"], dtype=pb.DTYPE_FLOAT32, dropout=0.1
    )
    assert heard.explain


def test_what_is_not_said_is_not_sent(planner: RecordingPlanner) -> None:
    assert main(["plan", "--model", "m", *CARD]) == 0
    assert not planner.request.HasField("schedule")
    assert not planner.request.HasField("adapters")
    assert planner.request.constraints == pb.Constraints()


def test_training_plans_what_can_be_trained(planner: RecordingPlanner) -> None:
    """The trainer cannot be reached, but the plan comes first."""
    train = ("--data", ".", "--steps", "5", "--accumulate", "2", "--rank", "4")
    assert main(["train", "--model", "m", *CARD, *train, "--trainer-address", "127.0.0.1:1"]) == 3
    assert planner.request.constraints == pb.Constraints()
    assert planner.request.schedule == pb.Schedule(steps=5, gradient_accumulation_steps=2)
    assert planner.request.adapters == pb.Adapters(rank=4)


def test_epochs(planner: RecordingPlanner) -> None:
    epochs = ("--epochs", "1.5", "--dataset-tokens", "1000000")
    assert main(["estimate", "--model", "m", *CARD, "--tier", "3", *epochs]) == 0
    assert planner.request.schedule == pb.Schedule(epochs=1.5, dataset_tokens=1_000_000)


def test_cards_are_compared(planner: RecordingPlanner, capsys: pytest.CaptureFixture[str]) -> None:
    cards = ("--compare", "h200, rtx-3090", "--host-ram", "64GiB", "--disk", "1TiB", "--tier", "9")
    assert main(["plan", "--model", "m", *cards]) == 0
    assert "1  h200" in capsys.readouterr().out
    heard = planner.request
    assert list(heard.gpu_ids) == ["h200", "rtx-3090"]
    assert (heard.host_memory_bytes, heard.disk_free_bytes) == (64 * 2**30, 2**40)
    # They are the host's, and limit nothing.
    assert heard.constraints == pb.Constraints(tier=9)
    assert main(["plan", "--model", "m", "--compare", "all", "--host-ram", "64GiB"]) == 0
    assert not planner.request.gpu_ids


def test_json_is_the_answer_and_nothing_else(
    planner: RecordingPlanner, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    chart = tmp_path / "cards.svg"
    compare = ("--compare", "all", "--host-ram", "64GiB", "--chart", str(chart))
    assert main(["plan", "--model", "m", *compare, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["alternatives"]) == 4
    assert chart.exists()
    assert planner.request is not None


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--model", "m", *CARD],
        ["plan", "--model", "m", "--compare", "h200", "--host-ram", "64GiB"],
        ["estimate", "--model", "m", *CARD, "--tier", "3"],
    ],
)
def test_nothing_fits_exits_with_one(planner: RecordingPlanner, arguments: list[str]) -> None:
    planner.fits = False
    assert main(arguments) == 1


def test_a_chart_beside_the_text(
    planner: RecordingPlanner, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    planner.fits = False
    chart = tmp_path / "plan.png"
    assert main(["plan", "--model", "m", *CARD, "--chart", str(chart)]) == 1
    assert "Nothing fits." in capsys.readouterr().out
    assert chart.stat().st_size > 10_000


def test_commands_load_no_more_than_they_need() -> None:
    """The start of every command, and printing a plan, without what charts and services need."""
    script = (
        "import sys; import elite_cli.main, elite_cli.commands; before = set(sys.modules);"
        "import elite_cli.render.plan, elite_cli.planning;"
        "print({'rich.table', 'google.protobuf', 'grpc'} & before,"
        " {'matplotlib', 'numpy', 'torch', 'services.planner'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set() set()\n"
