"""How many operations the engine asks for beside how many the planner counts: a GPU waits for both.

A CPU asks for the same ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.gpu_models import StreamingOnDevice, random_window
from bench.gpu_plans import fast_machine, plan_message, streaming_set
from bench.speed import Subject
from services.planner.adapters import EVERY_LINEAR
from services.planner.evaluation import Evaluation
from services.planner.ladder import Tier
from services.planner.memory import Sizing
from services.planner.options import Place
from services.planner.time_terms import time_terms
from services.profiler.probes.launches import OperationCounter
from services.trainer.engine.executors import make_executor

_CHUNK = 32
_SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 256,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
_FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"hidden_act": "silu"},
    "llama": {"hidden_act": "silu"},
    "phi": {"hidden_act": "gelu_new", "num_key_value_heads": 4, "tie_word_embeddings": False},
    "gemma3_text": {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 16},
}


def operations_of_step(subject: Subject, chunks: int) -> int:
    """Operations of torch in a streaming step of so many chunks."""
    machine, tier = fast_machine("cpu", 2**33, "sdpa_flash"), Tier(1, _CHUNK * chunks - 8, 8, 4)
    chosen = streaming_set(subject.shape, machine)
    candidate = Evaluation(subject.shape, machine).one(tier, chosen, Sizing(chunk_tokens=_CHUNK))
    plan = plan_message(subject.shape, machine, candidate)
    executor = make_executor(
        StreamingOnDevice(subject.config, plan, torch.device("cpu")).model, plan
    )
    with OperationCounter() as counter:
        executor.step(random_window(plan), 1.0)
    return counter.operations


@pytest.mark.parametrize("family", _FAMILIES)
def test_operations_of_a_chunk_in_a_layer_are_those_that_are_counted(family: str) -> None:
    config = {"model_type": family, **_SIZES, **_FAMILIES[family]}
    deep, shallow = (Subject(family, {**config, "num_hidden_layers": n}) for n in (6, 4))
    by_chunks = [
        (operations_of_step(deep, chunks) - operations_of_step(shallow, chunks)) / 2
        for chunks in (4, 2)
    ]
    found = (by_chunks[0] - by_chunks[1]) / 2
    machine = fast_machine("cpu", 2**33, "sdpa_flash")
    rates = replace(machine.rates, launch_seconds=1.0)
    chosen = streaming_set(deep.shape, machine)
    # Forward, recompute, backward, and half of one for keys that are made again.
    passes = 3 + 0.5 * (chosen.kept_keys is Place.NOWHERE)
    counted = passes * float(time_terms(deep.shape, chosen, EVERY_LINEAR, rates).launch_seconds)
    assert counted == pytest.approx(found, rel=0.2)
