"""Answers as a caller gets them: schedules, cards compared, the project's own examples."""

from __future__ import annotations

from dataclasses import replace

import pytest

from elite.planner.v1 import planner_pb2 as pb
from services.common.errors import ServiceError
from services.planner.adapters import EVERY_LINEAR, Adapters
from services.planner.budgets import Constraints
from services.planner.evaluation import Evaluation
from services.planner.gpus import gpu_cards
from services.planner.ladder import load_ladder
from services.planner.machine import ComputeDtype, Machine, hypothetical_machine
from services.planner.memory import Sizing
from services.planner.models import model_by_id
from services.planner.options import BasePrecision, OptimizationSet
from services.planner.planning import Question, answer_plan, answer_what_if
from services.planner.schedule import Schedule, Stage
from tests.support.machines import GIBIBYTE, machine

LADDER = load_ladder()
TEBIBYTE = 2**40


def question(
    model_id: str = "qwen2.5-1.5b",
    device: Machine | None = None,
    constraints: Constraints = Constraints(),  # noqa: B008
    adapters: Adapters = EVERY_LINEAR,
) -> Question:
    return Question(LADDER, model_by_id(model_id), device or machine(), constraints, adapters)


@pytest.mark.parametrize(
    ("gpu_id", "tier"), [("rtx-2060-super", 8), ("rtx-3090", 10), ("rtx-4090", 11)]
)
def test_the_examples_of_the_original_table_are_reached_with_host_memory_and_nvme(
    gpu_id: str, tier: int
) -> None:
    roomy = hypothetical_machine(gpu_id, 512 * GIBIBYTE, 4 * TEBIBYTE)
    reached = answer_plan(question("phi-2", roomy)).chosen
    assert reached.tier >= tier
    assert reached.host_memory.total_bytes > 50 * GIBIBYTE  # and it says so
    assert reached.step_seconds > 3600


@pytest.mark.parametrize("gpu_id", ["rtx-2060-super", "rtx-3090", "rtx-4090"])
def test_with_little_host_memory_it_says_so_instead(gpu_id: str) -> None:
    poor = hypothetical_machine(gpu_id, 16 * GIBIBYTE, 0)
    response = answer_plan(question("phi-2", poor))
    refused = [verdict for verdict in response.tiers if not verdict.fits]
    assert response.chosen.tier < 8
    assert refused[-1].binding_resource == pb.RESOURCE_HOST_MEMORY
    assert refused[-1].shortfall_bytes > 100 * GIBIBYTE
    assert "more host memory" in refused[-1].remedy


@pytest.mark.parametrize(
    ("model_id", "device"),
    [
        ("llama-3.1-8b", machine(gpu_bytes=int(3.1 * GIBIBYTE), host_bytes=32 * GIBIBYTE)),
        (
            "llama-3.1-70b",
            hypothetical_machine("rtx-2060-super", 192 * GIBIBYTE, TEBIBYTE),
        ),
    ],
)
def test_a_model_larger_than_the_card_is_streamed_through_it(
    model_id: str, device: Machine
) -> None:
    chosen = answer_plan(question(model_id, device)).chosen
    assert chosen.tier >= 4
    assert chosen.execution.weight_placement == pb.PLACEMENT_HOST
    assert chosen.execution.base_precision == pb.BASE_PRECISION_NF4
    base = next(line.bytes for line in chosen.gpu_memory.lines if line.name == "base_model")
    model = model_by_id(model_id)
    assert base < 2 * model.parameter_count / 4  # less than its weights in four bits
    assert chosen.host_memory.total_bytes > model.parameter_count / 2


def test_every_remedy_works() -> None:
    card, host = "rtx-3090", 96 * GIBIBYTE
    poor = hypothetical_machine(card, host, 0)
    checked = set()
    for verdict in answer_plan(question("phi-2", poor)).tiers:
        for remedy in verdict.remedies:
            better, constraints = poor, Constraints()
            if remedy.resource == pb.RESOURCE_HOST_MEMORY:
                better = hypothetical_machine(card, host + remedy.bytes, 0)
            elif remedy.resource == pb.RESOURCE_DISK:
                better = hypothetical_machine(card, host, remedy.bytes)
            elif remedy.gpu_id:
                better = hypothetical_machine(remedy.gpu_id, host, 0)
            elif remedy.optimization_id:
                constraints = Constraints(allowed=frozenset((remedy.optimization_id,)))
            else:
                continue
            checked.add(remedy.resource)
            again = answer_plan(question("phi-2", better, constraints))
            assert again.tiers[verdict.tier - 1].fits, (verdict.tier, remedy.text)
    assert {pb.RESOURCE_HOST_MEMORY, pb.RESOURCE_SOFTWARE} <= checked


def test_lossy_activations_are_used_only_where_they_are_allowed() -> None:
    poor = hypothetical_machine("rtx-3090", 96 * GIBIBYTE, 0)
    names = {"activations-8bit", "activations-4bit", "grouped-query-conversion"}
    for verdict in answer_plan(question("phi-2", poor)).tiers:
        assert not (verdict.fits and names & set(verdict.optimization_ids))
    allowed = Constraints(allowed=frozenset(names))
    assert (
        answer_plan(question("phi-2", poor, allowed)).chosen.tier
        > answer_plan(question("phi-2", poor)).chosen.tier
    )


def test_exact_only_is_exact() -> None:
    chosen = answer_plan(question(constraints=Constraints(exact_only=True))).chosen
    assert chosen.tier > 0
    assert all(optimization.exact for optimization in chosen.optimizations)
    assert chosen.execution.optimizer == pb.OPTIMIZER_KIND_ADAMW


POOLED_HEADS = frozenset({"grouped-query-conversion"})


def test_heads_are_pooled_where_that_is_allowed() -> None:
    device = hypothetical_machine("rtx-2060-super", 64 * GIBIBYTE, 0)
    chosen = answer_plan(question("phi-2", device, Constraints(allowed=POOLED_HEADS))).chosen
    assert chosen.execution.key_value_head_count == 4
    assert chosen.model.key_value_head_count == 32  # of the model as it is found
    assert "grouped-query-conversion" in [one.id for one in chosen.optimizations]


def test_dropout_is_for_the_resident_executor() -> None:
    """The engine's streaming executor refuses it."""
    dropped = Adapters(dropout=0.1)
    asked = answer_plan(question("qwen2.5-1.5b", adapters=dropped))
    assert asked.chosen.execution.executor == pb.EXECUTOR_RESIDENT
    windowed = answer_plan(question("starcoder2-3b", adapters=dropped))
    assert not windowed.chosen.tier
    assert "leave adapters.dropout out" in windowed.tiers[0].remedies[0].text


def test_adapters_move_memory() -> None:
    model, device = model_by_id("qwen2.5-1.5b"), machine()
    chosen = OptimizationSet(BasePrecision.FULL, ComputeDtype.BFLOAT16, "sdpa_flash")

    def total(adapters: Adapters) -> int:
        evaluation = Evaluation(model, device, adapters)
        return evaluation.one(LADDER[2], chosen, Sizing()).memory.device.total_bytes

    usual = total(EVERY_LINEAR)
    assert total(Adapters(target_modules=("q_proj", "v_proj"))) < usual
    assert total(Adapters(float32=True)) > usual
    assert total(Adapters(dropout=0.1)) > usual
    assert total(Adapters(rank=256)) > usual
    lora = answer_plan(question(adapters=Adapters(("q_proj",), rank=7))).chosen.lora
    assert list(lora.target_modules) == ["q_proj"]
    assert lora.parameter_count == 28 * 7 * (1536 + 1536)


def test_a_schedule_adds_up() -> None:
    stages = (Stage(LADDER[0], 30), Stage(LADDER[1], 20))
    schedule = Schedule(steps=10, accumulation=4, curriculum=stages)
    powered = replace(machine(), power_watts=300.0)
    response = answer_plan(question(device=powered, constraints=Constraints(schedule=schedule)))
    run, chosen = response.chosen.run, response.chosen
    assert run.steps == 60
    assert [stage.tier for stage in run.stages] == [1, 2, chosen.tier]
    seconds = chosen.start_seconds + sum(stage.seconds for stage in run.stages)
    assert run.seconds == pytest.approx(seconds)
    assert run.stages[-1].seconds == pytest.approx(40 * chosen.step_seconds)
    assert run.seconds_low < run.seconds < run.seconds_high
    assert run.energy_joules == pytest.approx(300 * run.seconds)
    windows = 30 * LADDER[0].tokens + 20 * LADDER[1].tokens
    assert run.trained_tokens == 4 * (windows + 10 * LADDER[chosen.tier - 1].tokens)


def test_epochs_become_steps_at_each_tier() -> None:
    schedule = Schedule(epochs=2.0, dataset_tokens=1_000_000)
    response = answer_plan(question(constraints=Constraints(schedule=schedule, tier=1)))
    assert response.chosen.run.steps == -(-2_000_000 // 4608)
    several = answer_plan(
        question(constraints=Constraints(schedule=replace(schedule, accumulation=4), tier=1))
    )
    assert several.chosen.run.steps == -(-2_000_000 // (4 * 4608))


def test_a_limit_on_the_run_binds_by_time() -> None:
    schedule = Schedule(steps=1000)
    free = answer_plan(question(constraints=Constraints(schedule=schedule)))
    limit = Constraints(schedule=schedule, max_run_seconds=free.tiers[3].run_seconds * 1.01)
    limited = answer_plan(question(constraints=limit))
    assert limited.chosen.tier == 4
    assert limited.tiers[4].binding_resource == pb.RESOURCE_TIME


def test_a_stage_that_does_not_fit_is_refused_by_name() -> None:
    schedule = Schedule(steps=1, curriculum=(Stage(LADDER[10], 1),))
    with pytest.raises(ServiceError, match=r"schedule\.curriculum\[0\]\.tier"):
        answer_plan(question(constraints=Constraints(schedule=schedule)))


def test_what_goes_to_disk_is_told() -> None:
    device = hypothetical_machine("rtx-3090", 256 * GIBIBYTE, 4 * TEBIBYTE)
    constraints = Constraints(tier=10, schedule=Schedule(steps=5))
    chosen = answer_plan(question("phi-2", device, constraints)).chosen
    assert chosen.disk_written_bytes_per_step > 100e9
    assert chosen.run.disk_written_bytes == 5 * chosen.disk_written_bytes_per_step


def test_cards_are_ranked_by_context_then_speed() -> None:
    wanted = ["t4", "rtx-3090", "rtx-4090", "h200"]
    questions = [
        (gpu_cards()[name], question("phi-2", hypothetical_machine(name, 64 * GIBIBYTE, 0)))
        for name in wanted
    ]
    ranked = answer_what_if(questions).alternatives
    order = [alternative.gpu_id for alternative in ranked]
    assert sorted(order) == sorted(wanted)
    assert order[0] == "h200"
    assert order.index("rtx-4090") < order.index("rtx-3090")
    tiers = [alternative.chosen.tier for alternative in ranked]
    assert tiers == sorted(tiers, reverse=True)


def test_custom_tiers_without_end_are_planned() -> None:
    many = tuple(
        replace(LADDER[0], tier=number, context_tokens=4096 * number) for number in range(1, 1101)
    )
    response = answer_plan(replace(question(), ladder=many))
    assert len(response.tiers) == 1100
    fits = [verdict.fits for verdict in response.tiers]
    assert fits == sorted(fits, reverse=True)
