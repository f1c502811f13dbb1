"""Answers of the planner made by hand: every field filled, figures of a plausible size."""

from __future__ import annotations

from elite.planner.v1 import planner_pb2 as pb

GIB = 2**30
TIER_COUNT = 11


def budget(*, one_pool: bool = False) -> pb.Budget:
    """An RTX 3090 in a host of 64 GiB; or a machine without a GPU."""
    host, host_safe = (20, 23) if one_pool else (50, 57)
    return pb.Budget(
        gpu_bytes=20 * GIB, host_bytes=host * GIB, disk_bytes=900 * GIB,
        gpu_safe_bytes=23 * GIB, host_safe_bytes=host_safe * GIB, headroom_fraction=0.12,
        gpu_memory_is_host_memory=one_pool,
        device_name="AMD EPYC" if one_pool else "NVIDIA GeForce RTX 3090",
    )  # fmt: skip


def memory(lines: dict[str, float], phase: str, budget_bytes: int) -> pb.MemoryEstimate:
    """An estimate of these lines, in GiB."""
    made = [
        pb.MemoryLine(name=name, bytes=int(size * GIB), formula_id=f"formula-{name}")
        for name, size in lines.items()
    ]
    total = sum(line.bytes for line in made)
    return pb.MemoryEstimate(
        total_bytes=total, lines=made, peak_phase=phase,
        phases=[pb.PhaseTotal(phase=phase, bytes=total)],
        headroom_bytes=max(0, budget_bytes - total),
    )  # fmt: skip


def plan(*, tier: int = 8, one_pool: bool = False) -> pb.Plan:
    """A streaming plan; with one pool, a resident one."""
    made = pb.Plan(
        tier=tier, context_tokens=2048 * 2**tier, target_tokens=256 * 2**tier,
        model=model(), lora=pb.Lora(rank=8, alpha=16, target_modules=["q_proj", "v_proj"]),
        optimizations=[
            pb.AppliedOptimization(id="qlora-4bit", name="QLoRA 4-bit", exact=False),
            pb.AppliedOptimization(id="tiled-loss", name="Tiled loss", exact=True),
        ],
        step_seconds=5400, step_seconds_low=4500, step_seconds_high=7200, start_seconds=31,
        time_lines=[
            pb.TimeLine(name="attention", seconds=4000, formula_id="attention-flops"),
            pb.TimeLine(name="linear", seconds=1400, formula_id="linear-flops"),
        ],
        power_watts=350,
        execution=pb.Execution(
            executor=pb.EXECUTOR_RESIDENT if one_pool else pb.EXECUTOR_STREAMING,
            base_precision=pb.BASE_PRECISION_NF4, compute_dtype=pb.DTYPE_BFLOAT16,
            checkpoint_policy=pb.CHECKPOINT_POLICY_EVERY_LAYER, layer_input_interval=1,
            layer_inputs=pb.Store(placement=pb.PLACEMENT_HOST, codec=pb.CODEC_INT8),
            optimizer=pb.OPTIMIZER_KIND_ADAMW_8BIT, attention_kernel="sdpa_flash",
            weight_placement=pb.PLACEMENT_DEVICE, loss_tile_rows=1024,
        ),
    )  # fmt: skip
    _add_memory(made, one_pool=one_pool)
    if not one_pool:
        made.disk_written_bytes_per_step = 4 * GIB
        made.execution.streaming.CopyFrom(streaming())
    return made


def streaming() -> pb.Streaming:
    """Keys on the device, attention outputs on disk."""
    return pb.Streaming(
        chunk_tokens=8192, page_tokens=8192,
        key_values=pb.Store(placement=pb.PLACEMENT_DEVICE, codec=pb.CODEC_EXACT),
        attention_outputs=pb.Store(placement=pb.PLACEMENT_DISK, codec=pb.CODEC_EXACT),
        hidden_gradients=pb.Store(placement=pb.PLACEMENT_HOST, codec=pb.CODEC_EXACT),
    )  # fmt: skip


def _add_memory(made: pb.Plan, *, one_pool: bool) -> None:
    device = {
        "base_model": 1.2, "lora": 0.01, "activations": 7.5, "kv": 4.3, "gradients": 0.01,
        "optimizer": 0.02, "buffers": 1.3, "runtime": 0.0,
    }  # fmt: skip
    limits = budget(one_pool=one_pool)
    host = device | {"runtime": 2.0} if one_pool else {"runtime": 3.0, "activations": 33.0}
    made.gpu_memory.CopyFrom(memory(device, "backward", limits.gpu_bytes))
    made.host_memory.CopyFrom(memory(host, "forward", limits.host_bytes))
    disk = {"activations": 0.0 if one_pool else 120.0, "lora": 0.01, "optimizer": 0.02}
    made.disk.CopyFrom(memory(disk, "optimizer", limits.disk_bytes))


def with_schedule(made: pb.Plan) -> pb.Plan:
    """The plan with a whole run of two stages, calibration and an obstacle."""
    made.run.CopyFrom(
        pb.RunCost(
            steps=210, seconds=1_085_000, seconds_low=905_000, seconds_high=1_445_000,
            energy_joules=379_750_000, disk_written_bytes=840 * GIB, trained_tokens=118_000_000,
            stages=[
                pb.RunStage(tier=4, steps=10, step_seconds=60, seconds=600),
                pb.RunStage(tier=made.tier, steps=200, step_seconds=5400, seconds=1_080_000),
            ],
        )
    )  # fmt: skip
    made.calibration.CopyFrom(
        pb.Calibration(memory_run_count=3, time_run_count=4, memory_factor=1.01, time_factor=0.93)
    )
    return made


def model() -> pb.ModelSummary:
    """Qwen2.5 1.5B."""
    return pb.ModelSummary(
        model_id="qwen2.5-1.5b", display_name="Qwen2.5 1.5B", parameter_count=1_543_714_304,
        layer_count=28, hidden_size=1536,
    )  # fmt: skip


def verdict(tier: int, *, fits: bool, one_pool: bool = False) -> pb.TierVerdict:
    """A tier that fits, or that lacks host memory."""
    # What fits is sized to the budget; what does not grows past it.
    gpu = min(20.0, 1.2 + 0.05 * 2**tier) if fits else 0.04 * 2**tier
    made = pb.TierVerdict(
        tier=tier, context_tokens=2048 * 2**tier, target_tokens=256 * 2**tier, lora_rank=8,
        fits=fits, gpu_bytes=int(gpu * GIB), host_bytes=int(0.15 * 2**tier * GIB),
        step_seconds=0.09 * 4**tier, step_seconds_low=0.08 * 4**tier,
        step_seconds_high=0.12 * 4**tier, run_seconds=18 * 4**tier,
    )  # fmt: skip
    if not fits:
        missing = (tier - 8) * 27 * GIB if tier > 8 else 27 * GIB
        made.binding_resource = pb.RESOURCE_HOST_MEMORY
        made.shortfall_bytes = missing
        made.remedies.extend(remedies(missing, one_pool=one_pool))
        made.remedy = made.remedies[0].text
    return made


def remedies(missing_bytes: int, *, one_pool: bool = False) -> list[pb.Remedy]:
    """Two ways out."""
    text = f"{missing_bytes / 1e9:.1f} GB more host memory"
    more = pb.Remedy(text=text, resource=pb.RESOURCE_HOST_MEMORY, bytes=missing_bytes)
    allow = pb.Remedy(
        text="allow activations-4bit, which is lossy", resource=pb.RESOURCE_SOFTWARE,
        optimization_id="activations-4bit",
    )  # fmt: skip
    return [more] if one_pool else [allow, more]


def plan_response(
    *, highest: int = 8, one_pool: bool = False, schedule: bool = False
) -> pb.PlanResponse:
    """Tiers up to `highest` fit, and that one is chosen; 0: nothing fits."""
    made = pb.PlanResponse(
        budget=budget(one_pool=one_pool), model=model(), notes=["figures of the card table"],
        tiers=[
            verdict(tier, fits=tier <= highest, one_pool=one_pool)
            for tier in range(1, TIER_COUNT + 1)
        ],
    )  # fmt: skip
    if highest:
        made.chosen.CopyFrom(plan(tier=highest, one_pool=one_pool))
        if schedule:
            with_schedule(made.chosen)
    return made


def derivations() -> list[pb.Derivation]:
    """Lines of three budgets, one of them long."""
    long = " + ".join(f"S * {number} * h" for number in range(40))
    return [
        pb.Derivation(
            budget="gpu", line="kv", formula_id="streaming-keys", expression="S * 12 * k",
            with_numbers="589824 * 12 * 256", value=589824 * 12 * 256,
        ),
        pb.Derivation(
            budget="gpu", line="activations", formula_id="streaming-chunk", expression=long,
            with_numbers=long.replace("S", "589824").replace("h", "1536"), value=7.5 * GIB,
        ),
        pb.Derivation(
            budget="host", line="runtime", formula_id="runtime", expression="3221225472",
            with_numbers="3221225472", value=3 * GIB,
        ),
        pb.Derivation(
            budget="time", line="attention", formula_id="attention-flops",
            expression="2 * q * S^2 / rate", with_numbers="2 * 1536 * 589824^2 / 3.5e13",
            value=30.5,
        ),
    ]  # fmt: skip


def estimate_response(*, fits: bool = True, schedule: bool = False) -> pb.EstimateResponse:
    """One tier costed."""
    made = pb.EstimateResponse(
        plan=plan(), budget=budget(), verdict=verdict(8, fits=fits), notes=["a note"]
    )
    if schedule:
        with_schedule(made.plan)
    return made


def what_if_response(*, fitting: int = 2, schedule: bool = False) -> pb.WhatIfResponse:
    """Four cards, of which the first `fitting` fit a tier."""
    cards = {
        "h200": "NVIDIA H200", "a100-80gb": "NVIDIA A100 80GB", "rtx-4090": "NVIDIA RTX 4090",
        "rtx-3090": "NVIDIA RTX 3090",
    }  # fmt: skip
    made = pb.WhatIfResponse(model=model(), notes=["figures of the card table"])
    for index, (gpu_id, name) in enumerate(cards.items()):
        fits = index < fitting
        tier = 10 - index if fits else 1
        alternative = made.alternatives.add(
            gpu_id=gpu_id, name=name, verdict=verdict(tier, fits=fits), notes=[f"of {gpu_id}"]
        )
        if fits:
            chosen = plan(tier=tier)
            alternative.chosen.CopyFrom(with_schedule(chosen) if schedule else chosen)
    return made
