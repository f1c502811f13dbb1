"""What a plan says about steps that are saved in the middle, against the files the engine makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from services.planner.evaluation import Evaluation
from services.planner.ladder import Tier
from services.planner.machine import ComputeDtype
from services.planner.memory import Sizing
from services.planner.models import model_from_config
from services.planner.notes import plan_notes
from services.planner.options import BasePrecision, Executor, OptimizationSet, Place, Policy
from services.trainer.engine.executors.streaming import StreamingExecutor
from services.trainer.engine.streaming.kept_pages import KeptPages
from services.trainer.engine.streaming.settings import StreamingSettings
from services.trainer.engine.streaming.stores import Place as EnginePlace
from tests.fixtures.adapted import adapted_model
from tests.support.machines import machine

TIER = Tier(1, 6000, 200, 4)
CHUNK = 512
STREAMED = OptimizationSet(
    base_precision=BasePrecision.FULL, dtype=ComputeDtype.FLOAT32, attention_kernel="sdpa_flash",
    adamw_8bit=False, executor=Executor.STREAMING, policy=Policy.SELECTIVE,
    attention_outputs=Place.HOST, layer_inputs=Place.HOST,
)  # fmt: skip


@pytest.mark.parametrize(
    "chosen",
    [
        STREAMED,
        replace(STREAMED, layer_inputs=Place.DISK),
        replace(STREAMED, layer_input_interval=2, attention_outputs=Place.DEVICE),
        replace(STREAMED, policy=Policy.EVERY_LAYER, attention_outputs=Place.DEVICE),
    ],
)
def test_the_disk_a_saved_step_takes_is_that_of_its_files(
    chosen: OptimizationSet, tmp_path: Path
) -> None:
    model, _ = adapted_model("llama", num_hidden_layers=5)
    evaluation = Evaluation(model_from_config(model.config.to_json_string()), machine())
    planned = evaluation.one(TIER, chosen, Sizing(chunk_tokens=CHUNK)).memory
    selective = chosen.policy is Policy.SELECTIVE
    settings = StreamingSettings(
        TIER.tokens, TIER.target_tokens, CHUNK, 16, page_folder=tmp_path,
        journal_folder=tmp_path / "step", layer_inputs=EnginePlace[chosen.layer_inputs.name],
        layer_input_interval=chosen.layer_input_interval,
        attention_outputs=EnginePlace[chosen.attention_outputs.name] if selective else None,
    )  # fmt: skip
    workspace = StreamingExecutor(model, settings)._workspace
    # Page files are in the plan's own disk line.
    before = {path.name for path in (tmp_path / "step").glob("*")}
    KeptPages(tmp_path / "step", workspace.kept, workspace.hidden)
    made = [path for path in (tmp_path / "step").iterdir() if path.name not in before]
    assert planned.journal_bytes == sum(path.stat().st_size for path in made)


def test_a_long_step_says_that_it_is_saved() -> None:
    model, _ = adapted_model("llama", num_hidden_layers=5)
    shape = model_from_config(model.config.to_json_string())
    evaluation = Evaluation(shape, machine())
    short = evaluation.one(TIER, STREAMED, Sizing())
    long = replace(short, cost=replace(short.cost, seconds=7200.0))
    assert not [note for note in plan_notes(machine(), shape, short) if "in the middle" in note]
    (note,) = [note for note in plan_notes(machine(), shape, long) if "in the middle" in note]
    size = short.memory.journal_bytes / 2**30
    assert note == (
        f"a step takes 2 hours: it is saved in the middle, in up to {size:.1f} GiB of disk "
        "beside the plan's; without them it is not"
    )
