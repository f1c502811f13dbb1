"""The streaming executor as its supervisor sees it: same losses, page files, codecs, resume."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from tests.fixtures.engine import LLAMA_LINEARS, a_plan, tiny_config, write_json
from tests.fixtures.engine_process import Ended, Workspace, parsed
from tests.integration.engine.test_engine import (
    adapter_bytes,
    make_workspace,
    until_step,
)

DISK = planner_pb2.Store(placement=planner_pb2.PLACEMENT_DISK)
DEVICE = planner_pb2.Store(placement=planner_pb2.PLACEMENT_DEVICE)
OPTIMIZER = {"optimizer": planner_pb2.OPTIMIZER_KIND_ADAMW}


def streaming_workspace(root: Path, layers: int = 3, **execution: Any) -> Workspace:
    settings = {
        "executor": planner_pb2.EXECUTOR_STREAMING,
        "streaming": planner_pb2.Streaming(chunk_tokens=20, hidden_gradients=DEVICE),
        **OPTIMIZER, **execution,
    }  # fmt: skip
    plan = a_plan(tiny_config(num_hidden_layers=layers), LLAMA_LINEARS, **settings)
    return make_workspace(root, plan, num_hidden_layers=layers)


@pytest.fixture(scope="module")
def resident(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    plan = a_plan(tiny_config(num_hidden_layers=4), LLAMA_LINEARS, **OPTIMIZER)
    workspace = make_workspace(tmp_path_factory.mktemp("resident"), plan, num_hidden_layers=4)
    ended = workspace.run("whole")
    assert ended.status == 0, ended.log
    return ended


def test_a_streamed_run_has_the_losses_of_a_resident_one(tmp_path: Path, resident: Ended) -> None:
    workspace = streaming_workspace(
        tmp_path, layers=4,
        checkpoint_policy=planner_pb2.CHECKPOINT_POLICY_SELECTIVE, layer_inputs=DISK,
        layer_input_interval=2, weight_placement=planner_pb2.PLACEMENT_DEVICE,
        streaming=planner_pb2.Streaming(
            chunk_tokens=20, hidden_gradients=DEVICE, attention_outputs=DISK, kept_keys=DISK
        ),
    )  # fmt: skip
    ended = workspace.run("whole")
    assert ended.status == 0, ended.log
    for step, loss in resident.losses().items():
        assert ended.losses()[step] == pytest.approx(loss, rel=1e-3), step
    (loaded,) = ended.of("model_loaded")
    assert loaded.applied[-1] == (
        "streaming: chunks of 20 tokens, layer inputs on disk of every 2 layers, "
        "attention outputs on disk, kept keys on disk, hidden states on device, keys on device, "
        "block attention on sdpa_flash"
    )
    # In four chunks, one block of the disk each: one layer's inputs, and three layers' keys and
    # attention outputs.
    written = {step.disk_written_bytes for step in ended.of("step_completed")}
    assert written == {(4 + 12 + 12) * 4096}
    for step in ended.of("step_completed"):
        assert step.disk_read_bytes >= step.disk_written_bytes
        assert step.disk_read_bytes % 4096 == 0
        phases = [seconds for _, seconds in step.phases.ListFields()]
        assert len(phases) == 4
        assert sum(phases) <= step.step_seconds
    left = [path.name for path in workspace.run_directory("whole").iterdir()]
    assert not [name for name in left if name.startswith("elite-pages")]


def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(tmp_path: Path) -> None:
    workspace = streaming_workspace(tmp_path, layer_inputs=DISK)
    whole = workspace.run("whole")
    assert whole.status == 0, whole.log
    engine = workspace.start("stopped")
    lines = list(until_step(engine, 9))
    engine.kill()
    rest, log = engine.communicate(timeout=60)
    first = Ended(engine.returncode, parsed(lines + rest.splitlines()), log)
    assert first.status == -signal.SIGKILL, log
    second = workspace.run("stopped", "--resume")
    assert second.status == 0, second.log
    assert {**first.losses(), **second.losses()} == whole.losses()
    assert adapter_bytes(workspace, "stopped") == adapter_bytes(workspace, "whole")


def test_a_step_killed_at_random_moments_goes_on_in_the_middle(tmp_path: Path) -> None:
    """Two steps of some seconds each, a save every second, a SIGKILL whenever."""
    workspace = streaming_workspace(
        tmp_path, layers=8, layer_inputs=DISK,
        checkpoint_policy=planner_pb2.CHECKPOINT_POLICY_SELECTIVE,
        streaming=planner_pb2.Streaming(
            chunk_tokens=4, hidden_gradients=DEVICE, attention_outputs=DEVICE
        ),
    )  # fmt: skip
    training = trainer_pb2.TrainingSettings(
        steps=2, learning_rate=0.02, seed=5, evaluation_windows=0, gradient_accumulation_steps=2,
        checkpoint_every_seconds=1,
    )  # fmt: skip
    spec = json_format.Parse(workspace.spec.read_text(), trainer_pb2.RunSpec())
    spec.training.CopyFrom(training)
    write_json(workspace.spec, spec)
    whole = workspace.run("whole")
    assert whole.status == 0, whole.log
    chance = random.Random(7)
    lives: list[Ended] = []
    for _ in range(2):
        engine = workspace.start("killed", "--resume")
        lines = list(until_saved(engine))
        time.sleep(chance.uniform(0, 1.5))
        engine.kill()
        rest, log = engine.communicate(timeout=60)
        lives.append(Ended(engine.returncode, parsed(lines + rest.splitlines()), log))
        assert lives[-1].status == -signal.SIGKILL, log
        assert (workspace.run_directory("killed") / "step" / "state.json").exists()
    lives.append(workspace.run("killed", "--resume"))
    assert lives[-1].status == 0, lives[-1].log
    losses = {step: loss for life in lives for step, loss in life.losses().items()}
    assert losses == whole.losses()
    assert adapter_bytes(workspace, "killed") == adapter_bytes(workspace, "whole")
    assert not (workspace.run_directory("killed") / "step").exists()


def until_saved(engine: subprocess.Popen[str]) -> Iterator[str]:
    """Lines up to the first save in the middle of a step."""
    assert engine.stdout is not None
    for line in engine.stdout:
        yield line
        event = json_format.Parse(line, trainer_pb2.RunEvent())
        if event.checkpoint_saved.stage_count:
            return


def test_a_stop_is_obeyed_at_the_next_layer_and_the_step_goes_on_there(tmp_path: Path) -> None:
    workspace = streaming_workspace(tmp_path)
    whole = workspace.run("whole")
    engine = workspace.start("stopped")
    lines = list(until_step(engine, 9))
    engine.terminate()
    rest, log = engine.communicate(timeout=60)
    first = Ended(engine.returncode, parsed(lines + rest.splitlines()), log)
    assert first.status == 75, log
    saved = first.of("checkpoint_saved")[-1]
    assert saved.step == max(first.losses())
    second = workspace.run("stopped", "--resume")
    assert second.status == 0, second.log
    assert {**first.losses(), **second.losses()} == whole.losses()
    assert adapter_bytes(workspace, "stopped") == adapter_bytes(workspace, "whole")


def test_a_lossy_codec_says_what_it_does_to_the_gradients(tmp_path: Path) -> None:
    codec = planner_pb2.CODEC_NF4
    inputs = planner_pb2.Store(placement=planner_pb2.PLACEMENT_DISK, codec=codec)
    workspace = streaming_workspace(tmp_path, layer_inputs=inputs)
    ended = workspace.run("whole")
    assert ended.status == 0, ended.log
    said = ended.of("model_loaded")[0].applied[-1]
    cosine = re.fullmatch(
        r"layer inputs in nf4: gradient cosine (\S+) against exact layer inputs on \d+ tokens",
        said,
    )
    assert cosine is not None, said
    assert 0.9 <= float(cosine[1]) < 1.0
    before, after = ended.of("evaluated")
    assert after.loss < before.loss - 0.1


def test_outputs_kept_beside_four_bit_inputs_are_refused(tmp_path: Path) -> None:
    inputs = planner_pb2.Store(placement=planner_pb2.PLACEMENT_DISK, codec=planner_pb2.CODEC_NF4)
    workspace = streaming_workspace(
        tmp_path, layer_inputs=inputs,
        checkpoint_policy=planner_pb2.CHECKPOINT_POLICY_SELECTIVE,
    )  # fmt: skip
    cause, message = workspace.run("whole").failure()
    assert cause == "FAILURE_CAUSE_BAD_MODEL"
    assert "layer_inputs.codec CODEC_NF4 with kept attention outputs" in message


def test_less_host_memory_than_planned_is_refused_before_loading(tmp_path: Path) -> None:
    workspace = streaming_workspace(tmp_path)
    plan = json_format.Parse(workspace.plan.read_text(), planner_pb2.Plan())
    plan.host_memory.total_bytes = 2**50
    write_json(workspace.plan, plan)
    ended = workspace.run("whole")
    cause, message = ended.failure()
    assert cause == "FAILURE_CAUSE_HOST_OUT_OF_MEMORY"
    assert "needs 1,125,899,906,842,624 bytes of host memory" in message
    assert not ended.of("model_loaded")
