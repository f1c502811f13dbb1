"""How many operations the engine asks for beside how many the planner counts: a GPU waits for both.

A CPU asks for the same ones.
"""

from __future__ import annotations

from dataclasses import replace

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
from tests.support.counted_steps import FAMILIES, tiny_subject

_CHUNK = 32


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


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_of_a_chunk_in_a_layer_are_those_that_are_counted(family: str) -> None:
    deep, shallow = (tiny_subject(family, layers) for layers in (6, 4))
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
