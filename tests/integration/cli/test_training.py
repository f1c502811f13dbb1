"""`elite train` and `elite runs` against a real stack, on a tiny model."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from services.common.engine_process import available_cores
from tests.integration.cli.command_line import Elite, Stack, start_stack, wait_until

TERMINAL = {"RUN_STATE_SUCCEEDED", "RUN_STATE_FAILED", "RUN_STATE_CANCELLED"}


@pytest.fixture(scope="module")
def plan_file(stack: Stack, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan for tier 1 on this machine, measured on the way."""
    arguments = ("plan", "--model", str(tiny_model), "--tier", "1")
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    file.write_text(stack.elite.run(*arguments, "--json").stdout)
    return file


@pytest.fixture
def train(plan_file: Path, tiny_model: Path, corpus: Path) -> list[str]:
    """A training command without its number of steps."""
    return [
        "train", "--plan", str(plan_file), "--model", str(tiny_model), "--data", str(corpus),
        "--evaluation-windows", "1", "--learning-rate", "1e-3",
    ]  # fmt: skip


def run_of(stack: Stack, run_id: str) -> Any:
    return stack.elite.json("runs", "show", run_id)["run"]


def completed_steps(stack: Stack, run_id: str) -> int:
    return int(run_of(stack, run_id).get("progress", {}).get("completedSteps", 0))


def ended(stack: Stack, run_id: str) -> Any:
    """The run once it is over."""
    wait_until(lambda: run_of(stack, run_id)["state"] in TERMINAL, seconds=120)
    return run_of(stack, run_id)


def test_a_run_from_plan_to_adapter(stack: Stack, train: list[str]) -> None:
    created, *lines = stack.elite.json_lines(*train, "--steps", "2", "--name", "first")
    events = [line["event"] for line in lines]
    run_id = created["run"]["runId"]
    assert all(event["runId"] == run_id for event in events)
    steps = [event["stepCompleted"] for event in events if "stepCompleted" in event]
    assert [int(step["step"]) for step in steps] == [1, 2]
    assert all(int(step["measuredPeakBytes"]) > 0 for step in steps)
    evaluations = [event["evaluated"] for event in events if "evaluated" in event]
    assert [evaluation["beforeTraining"] for evaluation in evaluations] == [True, False]

    run = run_of(stack, run_id)
    assert run["state"] == "RUN_STATE_SUCCEEDED"
    assert (Path(run["adapterPath"]) / "adapter_model.safetensors").is_file()
    shown = " ".join(stack.elite.run("runs", "show", run_id).stdout.split())
    for words in ("succeeded", "held-out loss", "predicted"):
        assert words in shown
    assert run["adapterPath"] in shown.replace(" ", "")  # long paths are folded
    listed = stack.elite.json("runs", "list", "--state", "succeeded")["runs"]
    assert run_id in [entry["runId"] for entry in listed]
    assert run_id in stack.elite.run("runs", "list").stdout


def test_a_plan_is_made_on_the_way(stack: Stack, tiny_model: Path, corpus: Path) -> None:
    done = stack.elite.run(
        "train", "--model", str(tiny_model), "--data", str(corpus), "--steps", "1",
        "--tier", "1", "--evaluation-windows", "0",
    )  # fmt: skip
    assert "Tier 1: 4,096 context + 512 target tokens" in done.stderr
    assert "step 1/1: loss" in done.stderr
    assert "succeeded" in done.stdout


def test_pooled_heads_are_asked_for_and_measured(
    stack: Stack, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path / "full-heads"
    shutil.copytree(tiny_model, folder)
    # One in eight is left, and plans take that only where every thread of this CPU gets one.
    kept = available_cores()
    config = AutoConfig.from_pretrained(
        folder, hidden_size=8 * kept, num_attention_heads=8 * kept, num_key_value_heads=8 * kept
    )
    config.head_dim = 8
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    lines = stack.elite.json_lines(
        "train", "--model", str(folder), "--data", str(corpus), "--steps", "1", "--tier", "1",
        "--evaluation-windows", "0", "--allow", "grouped-query-conversion",
    )  # fmt: skip
    events = [line["event"] for line in lines if "event" in line]
    (loaded,) = [event["modelLoaded"] for event in events if "modelLoaded" in event]
    pooled = f"key-value heads: {8 * kept} to {kept} by mean pooling; loss "
    assert loaded["applied"][0].startswith(pooled)
    assert loaded["applied"][0].endswith(" after, on 256 tokens of your data")
    (saved,) = [event["adapterSaved"] for event in events if "adapterSaved" in event]
    assert f"key_value_head_count: {kept}" in (Path(saved["path"]) / "README.md").read_text()


def test_a_window_longer_than_the_models_own_is_streamed(
    stack: Stack, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    folder = tmp_path / "sliding-window"
    shutil.copytree(tiny_model, folder)
    shape = json.loads((tiny_model / "config.json").read_text())
    shared = {name: shape[name] for name in shape if name.endswith(("_size", "_layers", "_heads"))}
    config = MistralConfig(**shared, sliding_window=1024, tie_word_embeddings=True)
    MistralForCausalLM(config).save_pretrained(folder)
    created, *lines = stack.elite.json_lines(
        "train", "--model", str(folder), "--data", str(corpus), "--steps", "2", "--tier", "1",
        "--evaluation-windows", "1", "--learning-rate", "1e-3",
    )  # fmt: skip
    assert created["run"]["spec"]["plan"]["execution"]["executor"] == "EXECUTOR_STREAMING"
    events = [line["event"] for line in lines if "event" in line]
    (loaded,) = [event["modelLoaded"] for event in events if "modelLoaded" in event]
    assert loaded["applied"][-1].startswith("streaming: chunks of ")
    before, after = [event["evaluated"]["loss"] for event in events if "evaluated" in event]
    assert after < before
    assert run_of(stack, created["run"]["runId"])["state"] == "RUN_STATE_SUCCEEDED"


def test_ctrl_c_detaches_and_the_run_goes_on(stack: Stack, train: list[str]) -> None:
    watching = stack.elite.start(*train, "--steps", "4", "--json")
    assert watching.stdout is not None
    run_id = json.loads(watching.stdout.readline())["run"]["runId"]
    watching.stdout.readline()  # an event: it watches
    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate(timeout=30)
    assert watching.returncode == 130
    assert f"elite runs watch {run_id}" in errors
    assert f"elite runs cancel {run_id}" in errors
    assert "Traceback" not in errors
    assert ended(stack, run_id)["state"] == "RUN_STATE_SUCCEEDED"
    again = stack.elite.run("runs", "watch", run_id)
    assert "step 4/4" in again.stderr
    assert "succeeded" in again.stdout


def test_cancel_and_resume(stack: Stack, train: list[str]) -> None:
    steps = ["--steps", "500", "--checkpoint-every", "1", "--detach"]
    run_id = stack.elite.json(*train, *steps)["run"]["runId"]
    wait_until(lambda: completed_steps(stack, run_id) > 0)
    assert "asked to stop" in stack.elite.run("runs", "cancel", run_id).stdout
    assert ended(stack, run_id)["state"] == "RUN_STATE_CANCELLED"
    assert stack.elite.run("runs", "watch", run_id, code=1).stdout.startswith("Run ")
    assert "queued again" in stack.elite.run("runs", "resume", run_id).stdout
    wait_until(lambda: run_of(stack, run_id)["state"] == "RUN_STATE_RUNNING")
    stack.elite.json("runs", "cancel", run_id)
    assert ended(stack, run_id)["state"] == "RUN_STATE_CANCELLED"


def test_the_same_request_id_is_the_same_run(stack: Stack, train: list[str]) -> None:
    command = [*train, "--steps", "1", "--request-id", "only-once", "--detach"]
    first = stack.elite.json(*command)["run"]["runId"]
    assert stack.elite.json(*command)["run"]["runId"] == first
    ended(stack, first)


@pytest.mark.parametrize(
    ("option", "value", "field"),
    [
        ("--data", "/no/such/folder", "spec.data.path"),
        ("--data", "/etc", "spec.data.path"),
        ("--include", "*.nothing", "spec.data.path"),
        ("--learning-rate", "7", "spec.training.learning_rate"),
        ("--held-out", "0.9", "spec.data.held_out_fraction"),
        ("--request-id", "not allowed", "request_id"),
    ],
)
def test_bad_runs_are_refused_at_submission(
    stack: Stack, train: list[str], option: str, value: str, field: str
) -> None:
    before = stack.elite.json("runs", "list")["runs"]
    done = stack.elite.run(*train, "--steps", "1", option, value, code=2)
    assert f"error: {field}: " in done.stderr
    set_by = "--data" if field == "spec.data.path" else option
    assert f"{field} is set by {set_by}" in done.stderr
    assert stack.elite.json("runs", "list")["runs"] == before


def test_a_run_that_does_not_exist(stack: Stack) -> None:
    for command in ("show", "watch", "cancel", "resume"):
        done = stack.elite.run("runs", command, "no-such-run", code=2)
        assert "error: " in done.stderr


def engine_is_running(stack: Stack) -> bool:
    return any("services.trainer.engine" in command for command in stack.commands().values())


def test_a_run_survives_its_stack_and_an_engine_does_not(train: list[str], tmp_path: Path) -> None:
    elite = Elite(tmp_path / "state")
    first = start_stack(elite)
    run_id = elite.json(*train, "--steps", "500", "--checkpoint-every", "1", "--detach")
    run_id = run_id["run"]["runId"]
    wait_until(lambda: completed_steps(first, run_id) > 0)
    status, errors = first.stop(signal.SIGTERM)  # in order: the engine saves a checkpoint
    assert status == 0
    assert "was killed" not in errors
    assert first.living() == []

    second = start_stack(elite)
    wait_until(lambda: run_of(second, run_id)["state"] == "RUN_STATE_RUNNING")
    wait_until(lambda: engine_is_running(second))
    second.process.kill()
    second.process.communicate()
    wait_until(lambda: not second.living(), seconds=20)
