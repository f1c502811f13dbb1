"""The figures of docs/explanation/why-it-fits.md are those of the plan it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from elite.planner.v1 import planner_pb2 as pb
from services.planner.adapters import EVERY_LINEAR
from services.planner.budgets import Constraints
from services.planner.evaluation import Evaluation
from services.planner.ladder import load_ladder
from services.planner.machine import ComputeDtype, Machine, hypothetical_machine
from services.planner.memory import Sizing
from services.planner.models import model_by_id
from services.planner.options import BasePrecision, OptimizationSet
from services.planner.planning import Question, answer_plan
from tests.support.machines import GIBIBYTE

MODEL = "qwen2.5-1.5b"
PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "why-it-fits.md"


def card(host_gibibytes: int) -> Machine:
    return hypothetical_machine("rtx-2060-super", host_gibibytes * GIBIBYTE, 1024 * GIBIBYTE)


def planned(host_gibibytes: int) -> pb.PlanResponse:
    constraints, model = Constraints(tier=8), model_by_id(MODEL)
    return answer_plan(
        Question(load_ladder(), model, card(host_gibibytes), constraints, EVERY_LINEAR)
    )


@pytest.fixture(scope="module")
def response() -> pb.PlanResponse:
    return planned(128)


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


def test_plain_checkpointing(response: pb.PlanResponse, text: str) -> None:
    plain = OptimizationSet(
        base_precision=BasePrecision.FULL, dtype=ComputeDtype.FLOAT16,
        attention_kernel=response.chosen.execution.attention_kernel, adamw_8bit=True,
    )  # fmt: skip
    evaluation, (_, fits, too_long, *_) = Evaluation(model_by_id(MODEL), card(128)), load_ladder()
    most, over = (evaluation.one(tier, plain, Sizing()).memory.device for tier in (fits, too_long))
    assert most.total_bytes < response.budget.gpu_bytes < over.total_bytes
    assert f"{fits.tokens:,} tokens take {gibibytes(most.total_bytes)}".replace(",", " ") in text
    would_take = f"{too_long.tokens:,} would take {gibibytes(over.total_bytes)}"
    assert would_take.replace(",", " ") in text


def test_other_budgets(response: pb.PlanResponse, text: str) -> None:
    with_host, with_disk = response.chosen, planned(32).chosen
    assert f"{with_host.host_memory.total_bytes / GIBIBYTE:.1f} GiB here" in text
    assert not with_host.disk_written_bytes_per_step
    estimates = with_disk.host_memory, with_disk.disk
    taken = (estimate.total_bytes / GIBIBYTE for estimate in estimates)
    assert "takes {:.1f} GiB of that and {:.0f} GiB of page files".format(*taken) in text
    assert with_disk.step_seconds == pytest.approx(with_host.step_seconds, rel=0.01)


def test_time(response: pb.PlanResponse, text: str) -> None:
    seconds = {line.name: line.seconds for line in response.chosen.time_lines}
    for name in ("attention", "linear", "elementwise"):
        assert f"| {seconds[name]:,.0f} |".replace(",", " ") in text, name
