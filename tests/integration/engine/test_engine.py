"""The engine as its supervisor sees it: a process, its events, its files and its exit status."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from tests.fixtures.engine import (
    LLAMA_LINEARS,
    a_plan,
    tiny_config,
    write_corpus,
    write_json,
    write_tiny_model,
)
from tests.fixtures.engine_process import Ended, Workspace, parsed, start_engine

STEPS = 20


def a_spec(root: Path, **training: float) -> trainer_pb2.RunSpec:
    return trainer_pb2.RunSpec(
        model_path=str(root / "model"),
        data=trainer_pb2.DataSource(path=str(root / "data"), held_out_fraction=0.2),
        training=trainer_pb2.TrainingSettings(
            steps=STEPS, learning_rate=0.02, warmup_steps=2, seed=5, checkpoint_every_steps=8,
            evaluation_windows=3, **training,
        ),
    )  # fmt: skip


def make_workspace(root: Path, plan: planner_pb2.Plan, **model) -> Workspace:
    write_tiny_model(root / "model", **model)
    write_corpus(root / "data")
    (root / "data" / "image.png").write_bytes(b"\x89PNG\0\0")
    write_json(root / "plan.json", plan)
    write_json(root / "spec.json", a_spec(root))
    return Workspace(root, root / "plan.json", root / "spec.json")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    plan = a_plan(tiny_config(), LLAMA_LINEARS, compute_dtype=planner_pb2.DTYPE_BFLOAT16)
    plan.gpu_memory.total_bytes = 1_000_000
    plan.gpu_memory.lines.add(name="runtime", bytes=400_000)
    return make_workspace(tmp_path_factory.mktemp("engine"), plan)


@pytest.fixture(scope="module")
def uninterrupted(workspace: Workspace) -> Ended:
    ended = workspace.run("whole")
    assert ended.status == 0, ended.log
    return ended


def adapter_bytes(workspace: Workspace, name: str) -> bytes:
    return (workspace.run_directory(name) / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_run_tells_its_story_in_order(uninterrupted: Ended) -> None:
    kinds = [event.WhichOneof("event") for event in uninterrupted.events]
    phases = [started.phase for started in uninterrupted.of("phase_started")]
    assert phases == ["prepare_data", "load_model", "evaluate", "train", "evaluate", "save"]
    assert kinds[-1] == "adapter_saved"
    assert kinds.count("step_completed") == STEPS
    assert [saved.step for saved in uninterrupted.of("checkpoint_saved")] == [8, 16, STEPS]


def test_the_figures_of_a_run_are_filled_in(uninterrupted: Ended) -> None:
    (data,) = uninterrupted.of("data_prepared")
    assert data.file_count == 8
    assert data.skipped_files == ["image.png: binary"]
    assert data.training_window_count > 0
    assert data.held_out_window_count > 0
    (model,) = uninterrupted.of("model_loaded")
    assert model.attention_kernel == "sdpa_flash"
    assert 0 < model.trainable_parameter_count < model.parameter_count
    assert model.memory_bytes > 2 * model.parameter_count
    assert len(model.applied) == 4
    for step in uninterrupted.of("step_completed"):
        assert step.measured_peak_bytes > model.memory_bytes
        assert step.predicted_peak_bytes == 600_000  # without the runtime
        assert step.host_peak_bytes > step.measured_peak_bytes
        assert step.tokens_per_second == pytest.approx(64 / step.step_seconds)
        assert step.gradient_norm > 0
        phases = [seconds for _, seconds in step.phases.ListFields()]
        assert len(phases) == 4
        assert step.step_seconds / 2 < sum(phases) <= step.step_seconds
        # All of it is on the device.
        assert step.host_to_device_bytes == step.device_to_host_bytes == step.disk_read_bytes == 0
    rates = [step.learning_rate for step in uninterrupted.of("step_completed")]
    assert max(rates) == rates[1] == pytest.approx(0.02)


def test_training_lowers_the_held_out_loss(uninterrupted: Ended) -> None:
    before, after = uninterrupted.of("evaluated")
    assert before.before_training
    assert not after.before_training
    assert after.step == STEPS
    assert after.loss < before.loss - 0.1


def test_the_adapter_loads_in_peft_and_works(workspace: Workspace, uninterrupted: Ended) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    (saved,) = uninterrupted.of("adapter_saved")
    base = AutoModelForCausalLM.from_pretrained(workspace.root / "model")
    tokens = torch.arange(64)[None]
    plain = base(input_ids=tokens).logits
    adapted = PeftModel.from_pretrained(base, saved.path)
    assert not torch.allclose(adapted(input_ids=tokens).logits, plain)
    by_name = AutoPeftModelForCausalLM.from_pretrained(saved.path)  # base_model_name_or_path
    torch.testing.assert_close(
        by_name(input_ids=tokens).logits.float(), adapted(input_ids=tokens).logits.float(),
        rtol=0.05, atol=0.05,
    )  # fmt: skip


def until_step(engine: subprocess.Popen[str], step: int) -> Iterator[str]:
    assert engine.stdout is not None
    for line in engine.stdout:
        yield line
        event = parsed([line])[0]
        if event.WhichOneof("event") == "step_completed" and event.step_completed.step == step:
            return
    raise AssertionError(f"the engine ended before step {step}")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(
    workspace: Workspace, uninterrupted: Ended, how: signal.Signals
) -> None:
    name = how.name.lower()
    engine = workspace.start(name)
    lines = list(until_step(engine, 9))
    engine.send_signal(how)
    rest, log = engine.communicate(timeout=60)
    first = Ended(engine.returncode, parsed(lines + rest.splitlines()), log)
    if how == signal.SIGTERM:
        assert first.status == 75, log
        # The step that was running is finished and kept.
        assert first.of("checkpoint_saved")[-1].step == max(first.losses())
        assert not first.of("engine_failed")
    else:
        assert first.status == -signal.SIGKILL
    assert not (workspace.run_directory(name) / "adapter").exists()

    second = workspace.run(name, "--resume")
    assert second.status == 0, second.log
    # The loss before training is known already, and the model is no longer the one before.
    assert [evaluated.before_training for evaluated in second.of("evaluated")] == [False]
    assert {**first.losses(), **second.losses()} == uninterrupted.losses()
    assert second.of("evaluated")[-1].loss == uninterrupted.of("evaluated")[-1].loss
    assert adapter_bytes(workspace, name) == adapter_bytes(workspace, "whole")


def test_a_broken_checkpoint_is_passed_over(workspace: Workspace, uninterrupted: Ended) -> None:
    directory = workspace.run_directory("broken")
    shutil.copytree(workspace.run_directory("whole"), directory)
    shutil.rmtree(directory / "adapter")
    newest = directory / "checkpoints" / f"step-{STEPS:08d}"
    os.truncate(newest / "optimizer.safetensors", 50)
    ended = workspace.run("broken", "--resume")
    assert ended.status == 0, ended.log
    assert "checkpoint dropped" in ended.log
    assert sorted(ended.losses()) == list(range(17, STEPS + 1))
    assert ended.losses().items() <= uninterrupted.losses().items()
    assert adapter_bytes(workspace, "broken") == adapter_bytes(workspace, "whole")


@pytest.mark.usefixtures("uninterrupted")
def test_a_second_run_must_not_mix_with_the_first(workspace: Workspace) -> None:
    cause, message = workspace.run("whole").failure()
    assert cause == "FAILURE_CAUSE_INTERNAL"
    assert "pass --resume" in message


def test_a_stop_before_training_leaves_nothing_half_done(workspace: Workspace) -> None:
    engine = workspace.start("early")
    assert engine.stdout is not None
    for line in engine.stdout:
        if "load_model" in line:
            break
    engine.send_signal(signal.SIGTERM)
    _, log = engine.communicate(timeout=60)
    assert engine.returncode == 75, log
    left = workspace.run_directory("early").iterdir()
    assert {path.name for path in left} == {".fencing-lock", ".fencing-token"}


def test_a_corpus_shorter_than_a_window_is_bad_data(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "short.py").write_text("x = 1\n")
    cause, message = workspace.run("short", "--data", str(tmp_path)).failure()
    assert cause == "FAILURE_CAUSE_BAD_DATA"
    assert "one window of this tier needs 64: give more files" in message


def test_a_corrupt_plan_fails_before_anything_is_made(workspace: Workspace, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(workspace.plan.read_text()[:-20])
    cause, message = workspace.run("corrupt", plan=plan).failure()
    assert cause == "FAILURE_CAUSE_INTERNAL"
    assert f"{plan} is not JSON" in message
    assert not workspace.run_directory("corrupt").exists()


def test_another_model_than_planned_is_a_bad_model(workspace: Workspace, tmp_path: Path) -> None:
    plan = write_json(tmp_path / "plan.json", a_plan(tiny_config(hidden_size=48), LLAMA_LINEARS))
    cause, message = workspace.run("other", plan=plan).failure()
    assert cause == "FAILURE_CAUSE_BAD_MODEL"
    assert "hidden_size is 32, planned 48" in message


def test_a_divergent_run_names_the_step_and_the_fix(workspace: Workspace, tmp_path: Path) -> None:
    spec = a_spec(workspace.root)
    spec.training.learning_rate = 1.0
    spec.training.max_gradient_norm = 0
    spec.training.weight_decay = 1.0
    plan = a_plan(tiny_config(), LLAMA_LINEARS, compute_dtype=planner_pb2.DTYPE_FLOAT16)
    plan.lora.alpha = 65536
    wild = Workspace(workspace.root, write_json(tmp_path / "plan.json", plan),
                     write_json(tmp_path / "spec.json", spec))  # fmt: skip
    cause, message = wild.run("divergent").failure()
    assert cause == "FAILURE_CAUSE_DIVERGED"
    assert "at step" in message
    assert "lower training.learning_rate" in message


def test_nf4_with_events_on_another_descriptor(tmp_path: Path) -> None:
    plan = a_plan(
        tiny_config(hidden_size=64), LLAMA_LINEARS,
        base_precision=planner_pb2.BASE_PRECISION_NF4, compute_dtype=planner_pb2.DTYPE_BFLOAT16,
    )  # fmt: skip
    workspace = make_workspace(tmp_path, plan, hidden_size=64)
    reader, writer = os.pipe()
    engine = start_engine(
        "--plan", str(workspace.plan), "--spec", str(workspace.spec), "--events-fd", str(writer),
        "--run-directory", str(workspace.run_directory("nf4")),
        "--data-cache", str(tmp_path / "cache"), pass_fds=[writer],
    )  # fmt: skip
    os.close(writer)
    with os.fdopen(reader) as stream:
        lines = stream.read().splitlines()
    output, _ = engine.communicate(timeout=60)
    ended = Ended(engine.returncode, parsed(lines), "")
    assert (ended.status, output) == (0, "")
    assert ended.of("model_loaded")[0].applied[0].startswith("nf4: 14 linear modules")
    before, after = ended.of("evaluated")
    assert after.loss < before.loss - 0.1
    assert any((tmp_path / "cache").glob("tokens-*/tokens.bin"))
