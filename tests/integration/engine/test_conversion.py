"""Runs on a model converted to fewer key-value heads, and what becomes of their adapters."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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
from tests.fixtures.engine_process import ROOT, Ended, Workspace

STEPS = 12
EXECUTORS: dict[str, dict[str, Any]] = {
    "resident": {},
    "streaming": {
        "executor": planner_pb2.EXECUTOR_STREAMING,
        "streaming": planner_pb2.Streaming(chunk_tokens=20),
    },
}


def converting_plan(**execution: Any) -> planner_pb2.Plan:
    config = tiny_config(num_key_value_heads=4)
    return a_plan(config, LLAMA_LINEARS, **{"key_value_head_count": 2, **execution})


@pytest.fixture(scope="module", params=EXECUTORS)
def workspace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp(request.param)
    write_tiny_model(root / "model", num_key_value_heads=4)
    write_corpus(root / "data")
    plan = write_json(root / "plan.json", converting_plan(**EXECUTORS[request.param]))
    spec = trainer_pb2.RunSpec(
        model_path=str(root / "model"),
        data=trainer_pb2.DataSource(path=str(root / "data"), held_out_fraction=0.2),
        training=trainer_pb2.TrainingSettings(
            steps=STEPS, learning_rate=0.02, checkpoint_every_steps=8, evaluation_windows=3
        ),
    )
    return Workspace(root, plan, write_json(root / "spec.json", spec))


@pytest.fixture(scope="module")
def ended(workspace: Workspace) -> Ended:
    ended = workspace.run("whole")
    assert ended.status == 0, ended.log
    return ended


def test_the_run_says_what_the_conversion_costs_and_trains(ended: Ended) -> None:
    (model,) = ended.of("model_loaded")
    said = r"key-value heads: 4 to 2 by mean pooling; loss \d\.\d\d before, \d\.\d\d after, on 64 "
    assert re.match(said + "tokens of your data", model.applied[0])
    before, after = ended.of("evaluated")
    assert after.loss < before.loss - 0.1


@pytest.fixture(scope="module")
def converted_model(workspace: Workspace, ended: Ended) -> Path:
    """What the adapter's README says to write."""
    (saved,) = ended.of("adapter_saved")
    readme = (Path(saved.path) / "README.md").read_text()
    assert "key_value_head_count: 2" in readme
    (command,) = re.findall(r"python -m (services\S+ .*)", readme)
    module, *arguments, folder = command.split()
    target = workspace.root / folder
    subprocess.run([sys.executable, "-m", module, *arguments, target], check=True, cwd=ROOT)
    return target


def test_the_adapter_loads_onto_the_converted_model(ended: Ended, converted_model: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(converted_model)
    assert base.config.num_key_value_heads == 2
    assert AutoTokenizer.from_pretrained(converted_model).is_fast
    (saved,) = ended.of("adapter_saved")
    tokens = torch.arange(64)[None]
    plain = base(input_ids=tokens).logits
    adapted = PeftModel.from_pretrained(base, saved.path)
    assert not torch.allclose(adapted(input_ids=tokens).logits, plain)


def test_trained_weights_are_those_of_the_last_evaluation(
    workspace: Workspace, ended: Ended, converted_model: Path
) -> None:
    """The loaded model has the loss the run ended with: the same base, the same adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from services.trainer.engine.dataset import make_dataset, tokenise
    from services.trainer.engine.models import load_tokenizer
    from services.trainer.jobs.corpus import find_source_files

    corpus = find_source_files(str(workspace.root / "data"), [], [])
    tokens = tokenise(corpus, load_tokenizer(str(converted_model)), workspace.root / "cache")
    held_out = make_dataset(
        tokens, context_tokens=48, target_tokens=16, held_out_fraction=0.2, seed=0
    ).held_out.spread(3)
    (saved,) = ended.of("adapter_saved")
    base = AutoModelForCausalLM.from_pretrained(converted_model)
    model = PeftModel.from_pretrained(base, saved.path)
    losses = []
    for window in held_out:
        ids = torch.from_numpy(window)[None]
        labels = ids.clone()
        labels[:, :48] = -100
        losses.append(float(model(input_ids=ids, labels=labels).loss))
    assert sum(losses) / len(losses) == pytest.approx(ended.of("evaluated")[-1].loss, rel=1e-4)


def test_the_model_as_it_was_is_refused(workspace: Workspace, ended: Ended) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    (saved,) = ended.of("adapter_saved")
    base = AutoModelForCausalLM.from_pretrained(workspace.root / "model")
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(base, saved.path)
    with pytest.raises(Exception, match=r"with 2 key-value heads, see README\.md"):
        AutoPeftModelForCausalLM.from_pretrained(saved.path)


@pytest.mark.usefixtures("ended")
def test_a_checkpoint_goes_on_with_the_same_conversion_only(
    workspace: Workspace, tmp_path: Path
) -> None:
    plan = write_json(tmp_path / "plan.json", converting_plan(key_value_head_count=0))
    cause, message = workspace.run("whole", "--resume", plan=plan).failure()
    assert cause == "FAILURE_CAUSE_INTERNAL"
    assert "cannot be continued: key_value_head_count changed since" in message


def test_the_command_says_what_it_cannot_convert(workspace: Workspace, tmp_path: Path) -> None:
    module = "services.trainer.engine.key_value_heads"
    command = [sys.executable, "-m", module, workspace.root / "model", "3", tmp_path / "out"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("does not divide the model's 4: give a divisor of 4\n")
    assert not (tmp_path / "out").exists()
