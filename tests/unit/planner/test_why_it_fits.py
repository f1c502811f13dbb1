"""The figures of docs/explanation/why-it-fits.md are those of the plan it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from elite.planner.v1 import planner_pb2 as pb
from services.planner.adapters import EVERY_LINEAR
from services.planner.budgets import Constraints
from services.planner.ladder import load_ladder
from services.planner.machine import hypothetical_machine
from services.planner.models import model_by_id
from services.planner.planning import Question, answer_plan
from tests.support.machines import GIBIBYTE

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "why-it-fits.md"


@pytest.fixture(scope="module")
def response() -> pb.PlanResponse:
    card = hypothetical_machine("rtx-2060-super", 128 * GIBIBYTE, 1024 * GIBIBYTE)
    return answer_plan(
        Question(
            load_ladder(), model_by_id("qwen2.5-1.5b"), card, Constraints(tier=8), EVERY_LINEAR
        )
    )


@pytest.fixture(scope="module")
def text() -> str:
    return " ".join(PAGE.read_text().split())


def gibibytes(size: float) -> str:
    return f"{size / GIBIBYTE:.2f} GiB"


def test_device_memory(response: pb.PlanResponse, text: str) -> None:
    taken = {line.name: line.bytes for line in response.chosen.gpu_memory.lines}
    for name in ("base_model", "kv", "activations"):
        assert f"| {gibibytes(taken[name])} |" in text, name
    adapters = taken["lora"] + taken["gradients"] + taken["optimizer"]
    assert f"| {adapters / 2**20:.0f} MiB |" in text
    assert f"**{gibibytes(response.chosen.gpu_memory.total_bytes)}**" in text
    assert f"| {gibibytes(response.budget.gpu_bytes)} |" in text
    assert f"takes {gibibytes(response.tiers[10].gpu_bytes)} of the same card" in text
    assert f"take {gibibytes(response.tiers[1].gpu_bytes)} of the" in text


def test_other_budgets(response: pb.PlanResponse, text: str) -> None:
    chosen = response.chosen
    assert f"{chosen.host_memory.total_bytes / GIBIBYTE:.1f} GiB here" in text
    assert f"{chosen.disk.total_bytes / GIBIBYTE:.0f} GiB of page files" in text


def test_time(response: pb.PlanResponse, text: str) -> None:
    seconds = {line.name: line.seconds for line in response.chosen.time_lines}
    for name in ("attention", "linear", "elementwise"):
        assert f"| {seconds[name]:,.0f} |".replace(",", " ") in text, name
