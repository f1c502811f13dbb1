"""Steps of plans in processes of their own, each set up as the engine's is for an executor.

In one process they would find what steps of the other executor left in its allocator: blocks that
are there already, which a run has to get from the system. Nothing here loads torch before
`speed_worker.start` has set the process up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.speed_worker import RESIDENT, STREAMING, ProcessWorker
from elite.planner.v1 import planner_pb2

if TYPE_CHECKING:
    from services.trainer.engine.training import Stepper

# By executor and policy, for which a model is set up.
_models: dict[tuple[int, int], Any] = {}
_last: list[Stepper] = []


@dataclass(frozen=True, slots=True)
class Timed:
    """Wall seconds of a step, and which share of all cores its process had meanwhile."""

    seconds: float
    cpu_share: float


@contextmanager
def step_process(*, streaming: bool) -> Iterator[ProcessWorker]:
    """A process for one executor, ended at the end."""
    worker = ProcessWorker(STREAMING if streaming else RESIDENT)
    try:
        yield worker
    finally:
        worker.close()


def time_step(config: Mapping[str, Any], plan: planner_pb2.Plan, page_folder: Path) -> Timed:
    """The second step of a plan: the first one touches the memory of its stores.

    Always of the same model in one process, whose weights are made once.
    """
    from bench import steps

    kind = plan.execution.executor, plan.execution.checkpoint_policy
    if kind not in _models:
        _models[kind] = steps.load(config, plan)
    _last[:] = [steps.stepper(_models[kind], plan, config["vocab_size"], page_folder)]
    steps.timed_step(_last[0])
    return steps.timed_step(_last[0])


def operators(vocabulary: int) -> dict[str, Any]:
    """`steps.step_lines` of what was timed last."""
    from bench import steps

    return steps.step_lines(_last[0], vocabulary)
