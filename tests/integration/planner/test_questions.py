"""Questions beyond a plain plan: cards compared, adapters, schedules, explanations, calibration."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elite.planner.v1 import planner_pb2 as pb
from elite.planner.v1 import planner_pb2_grpc
from services.common.local import serve_locally
from services.planner.servicer import planner_service
from services.planner.settings import PlannerSettings
from tests.support.machines import GIBIBYTE, by_id, hypothetical, measured_profile
from tests.support.refusals import refused

Stub = planner_pb2_grpc.PlannerServiceStub


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stub]:
    yield from _planner(tmp_path_factory.mktemp("planner"))


@pytest.fixture
def fresh_planner(tmp_path: Path) -> Iterator[Stub]:
    yield from _planner(tmp_path)


def _planner(directory: Path) -> Iterator[Stub]:
    wanted = PlannerSettings(address="127.0.0.1:0", state_directory=directory)
    with (
        serve_locally(planner_service(wanted), wanted) as address,
        grpc.insecure_channel(address) as channel,
    ):
        yield Stub(channel)


def request(**fields: object) -> pb.PlanRequest:
    return pb.PlanRequest(machine=hypothetical(), model=by_id("qwen2.5-1.5b"), **fields)


def test_which_card_do_i_need(planner: Stub) -> None:
    wanted = ["t4", "rtx-3090", "h200", "rtx-3090"]
    response = planner.WhatIf(
        pb.WhatIfRequest(
            gpu_ids=wanted, host_memory_bytes=64 * GIBIBYTE, model=by_id("phi-2"),
            constraints=pb.Constraints(tier=9),
        )
    )  # fmt: skip
    assert response.alternatives[0].gpu_id == "h200"
    assert len(response.alternatives) == 3
    assert {one.verdict.tier for one in response.alternatives} == {9}
    for one in response.alternatives:
        assert one.HasField("chosen") == one.verdict.fits
        assert one.verdict.fits or one.verdict.remedies
    assert any("hypothetical" in note for note in response.notes)


def test_without_names_every_card_is_compared(planner: Stub) -> None:
    every = planner.ListGpus(pb.ListGpusRequest()).gpus
    response = planner.WhatIf(
        pb.WhatIfRequest(host_memory_bytes=64 * GIBIBYTE, model=by_id("smollm2-135m"))
    )
    assert {one.gpu_id for one in response.alternatives} == {gpu.gpu_id for gpu in every}
    assert all(gpu.power_limit_watts > 0 for gpu in every)


def test_an_execution_estimates_to_the_plan_it_came_from(planner: Stub) -> None:
    plan = planner.Plan(request()).chosen
    again = planner.Estimate(
        pb.EstimateRequest(
            machine=hypothetical(), model=by_id("qwen2.5-1.5b"), tier=plan.tier,
            execution=plan.execution,
        )
    )  # fmt: skip
    assert again.plan == plan


def test_explanations_come_on_request(planner: Stub) -> None:
    assert not planner.Plan(request()).chosen.derivations
    chosen = planner.Plan(request(explain=True)).chosen
    lines = {(one.budget, one.line): one for one in chosen.derivations}
    for line in chosen.gpu_memory.lines:
        if line.bytes:
            assert lines["gpu", line.name].value == pytest.approx(line.bytes)
            assert lines["gpu", line.name].formula_id == line.formula_id
    assert "S" in lines["gpu", "kv"].expression
    page = (Path(__file__).parents[3] / "docs/reference/memory-model.md").read_text()
    assert all(f"`{one.formula_id}`" in page for one in chosen.derivations)


def test_what_is_learned_reaches_the_next_plan(fresh_planner: Stub) -> None:
    before = fresh_planner.Plan(request()).chosen
    assert not before.HasField("calibration")
    for _ in range(3):
        report = pb.ReportOutcomeRequest(
            run_id="r", plan=before,
            measured_gpu_peak_bytes=round(before.gpu_memory.total_bytes * 1.05),
            measured_step_seconds=before.step_seconds * 1.3,
        )  # fmt: skip
        assert fresh_planner.ReportOutcome(report).used
    estimate = pb.EstimateRequest(
        machine=hypothetical(), model=by_id("qwen2.5-1.5b"), tier=before.tier,
        execution=before.execution,
    )  # fmt: skip
    after = fresh_planner.Estimate(estimate).plan
    assert after.calibration.memory_run_count == after.calibration.time_run_count == 3
    assert after.gpu_memory.total_bytes == pytest.approx(1.05 * before.gpu_memory.total_bytes)
    assert after.step_seconds == pytest.approx(1.3 * before.step_seconds)
    another = fresh_planner.Plan(
        pb.PlanRequest(machine=hypothetical("rtx-4090"), model=by_id("qwen2.5-1.5b"))
    )
    assert not another.chosen.HasField("calibration")


def test_a_wild_outcome_is_kept_and_not_used(fresh_planner: Stub) -> None:
    plan = fresh_planner.Plan(request()).chosen
    report = pb.ReportOutcomeRequest(
        run_id="r", plan=plan, measured_gpu_peak_bytes=1, measured_step_seconds=1e9
    )
    response = fresh_planner.ReportOutcome(report)
    assert response.recorded_outcomes == 1
    assert not response.used
    assert fresh_planner.Plan(request()).chosen == plan


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"adapters": pb.Adapters(target_modules=["q_prj"])}, "adapters.target_modules[0]"),
        ({"adapters": pb.Adapters(dtype=pb.DTYPE_FLOAT16)}, "adapters.dtype"),
        ({"adapters": pb.Adapters(dropout=1.5)}, "adapters.dropout"),
        ({"schedule": pb.Schedule()}, "schedule.steps"),
        ({"schedule": pb.Schedule(steps=1, epochs=1)}, "schedule"),
        ({"schedule": pb.Schedule(epochs=1)}, "schedule.dataset_tokens"),
        ({"schedule": pb.Schedule(steps=1, curriculum=[pb.CurriculumStage(tier=99, steps=1)])},
         "schedule.curriculum[0].tier"),
        ({"constraints": pb.Constraints(max_run_seconds=5)}, "constraints.max_run_seconds"),
        ({"constraints": pb.Constraints(allowed_lossy_ids=["qlora-4bit"])},
         "constraints.allowed_lossy_ids[0]"),
        ({"constraints": pb.Constraints(allowed_lossy_ids=["activations-4bit"], exact_only=True)},
         "constraints.allowed_lossy_ids"),
    ],
)  # fmt: skip
def test_a_bad_question_is_refused_by_field(
    planner: Stub, fields: dict[str, object], field: str
) -> None:
    assert field in refused(lambda: planner.Plan(request(**fields)))[1]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"optimization_ids": ["qlora-4bit"]}, "optimization_ids"),
        ({"attention_kernel": "sdpa_math"}, "execution.attention_kernel"),
        ({"key_value_head_count": 3}, "execution.key_value_head_count"),
        ({"weight_placement": pb.PLACEMENT_HOST, "executor": pb.EXECUTOR_RESIDENT}, "execution"),
    ],
)
def test_a_bad_execution_is_refused_by_field(
    planner: Stub, changes: dict[str, object], field: str
) -> None:
    plan = planner.Plan(request()).chosen
    estimate = pb.EstimateRequest(
        machine=hypothetical(), model=by_id("qwen2.5-1.5b"), tier=1, execution=plan.execution
    )
    for name, value in changes.items():
        if name == "optimization_ids":
            estimate.optimization_ids.extend(value)  # type: ignore[arg-type]
        else:
            setattr(estimate.execution, name, value)
    assert field in refused(lambda: planner.Estimate(estimate))[1]


@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_a_longer_tier_never_takes_less_memory_for_the_same_ids(
    planner: Stub, data: st.DataObject
) -> None:
    gpu = data.draw(st.sampled_from(["rtx-2060-super", "rtx-3060-12gb", "rtx-4090", "h200"]))
    model = by_id(data.draw(st.sampled_from(["phi-2", "qwen2.5-1.5b", "smollm2-135m"])))
    machine = hypothetical(gpu, data.draw(st.integers(8, 512)))
    plan = planner.Plan(pb.PlanRequest(machine=machine, model=model))
    ids = [one.id for one in plan.chosen.optimizations]
    taken = [
        planner.Estimate(
            pb.EstimateRequest(
                machine=machine, model=model, tier=tier, optimization_ids=ids,
                adapters=pb.Adapters(rank=8),
            )
        ).plan
        for tier in range(1, 12)
        if ids
    ]  # fmt: skip
    chunks = [one.execution.streaming.chunk_tokens for one in taken]
    for (shorter, chunk), (longer, next_chunk) in itertools.pairwise(
        zip(taken, chunks, strict=True)
    ):
        assert longer.step_seconds >= shorter.step_seconds
        # The ids leave the chunk open: where the longer tier has no room for a long one, it gets a
        # shorter one, and may take less.
        if next_chunk >= chunk:
            assert longer.gpu_memory.total_bytes >= shorter.gpu_memory.total_bytes
            assert longer.host_memory.total_bytes >= shorter.host_memory.total_bytes


@given(
    memory=st.integers(1, 2**50), free=st.integers(0, 2**50), rate=st.floats(1, 1e18),
    host=st.integers(1, 2**50), tokens=st.integers(0, 2**63), seconds=st.floats(0, 1e7),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_no_profile_crashes_the_planner(  # type: ignore[no-untyped-def]
    planner: Stub, memory, free, rate, host, tokens, seconds
) -> None:
    profile = measured_profile()
    device = profile.devices[0]
    device.memory_total_bytes, device.memory_free_bytes = memory, free
    measured = device.measurements
    measured.safe_allocatable_bytes = max(1, memory // 2)
    measured.matmul_16bit_flops_per_second = measured.matmul_32bit_flops_per_second = rate
    measured.memory_bandwidth_bytes_per_second = rate
    measured.attention_rates[0].sequence_tokens = max(1, tokens)
    measured.attention_rates.add(
        sequence_tokens=max(1, tokens), dtype="bfloat16", head_size=64,
        forward_flops_per_second=rate, backward_flops_per_second=rate, flops_per_second=rate,
    )  # fmt: skip
    measured.matmul_rates.add(rows=1, inner=tokens, outer=3, dtype="float32", flops_per_second=rate)
    profile.host.memory_total_bytes = host
    response = planner.Plan(
        pb.PlanRequest(
            machine=pb.Machine(profile=profile), model=by_id("smollm2-135m"),
            constraints=pb.Constraints(max_step_seconds=seconds),
        )
    )  # fmt: skip
    for verdict in response.tiers:
        assert verdict.step_seconds >= 0
        assert verdict.fits or verdict.remedy
