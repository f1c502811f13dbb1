"""The process that one executor has to itself: how it is set up is a part of what is compared.

Stock gets what Python and torch give a user. Streaming gets what the engine gives itself, its
environment, threads and allocator. Nothing here loads torch before `start` has set it up.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Protocol

from elite.planner.v1 import planner_pb2
from services.common.engine_process import LIBRARY_ENVIRONMENT

if TYPE_CHECKING:
    from bench import speed_steps

STOCK, TILED, STREAMING = "stock", "DeepSpeed tiles", "streaming"
# This project's other executor, which bench.time and bench.choices run too.
RESIDENT = "resident"
_contenders: dict[str, speed_steps.Contender] = {}


@dataclass(frozen=True, slots=True)
class Weighed:
    """Loss of a step, and bytes of the weights and of everything at the highest moment."""

    loss: float
    static_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Timed:
    """Loss of a step, its wall seconds, and the share of all cores this process had meanwhile."""

    loss: float
    seconds: float
    cpu_share: float


class Worker(Protocol):
    """Runs the functions below, in a process of its own."""

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns, or raises, there."""
        ...

    def close(self) -> None:
        """Ends the process."""
        ...


class ProcessWorker:
    """One child process, started anew and not forked."""

    def __init__(self, executor: str) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), start, (executor,))

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns, or raises, there. `BrokenProcessPool` when it was killed."""
        return self._pool.submit(function, *arguments).result()

    def close(self) -> None:
        """Ends the process."""
        self._pool.shutdown()


def start(executor: str) -> None:
    """Sets up this process for an executor, before the libraries load."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of names in transformers
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if executor in (STREAMING, RESIDENT):
        for name, value in LIBRARY_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from bench import steps

        steps.set_up_process(streaming=executor == STREAMING)


def device_facts() -> tuple[str, int]:
    """Kind of the device, and the bytes that tensors may still take on it."""
    from bench import speed_steps

    device = speed_steps.find_device()
    return device.type, speed_steps.free_bytes(device)


def load(name: str, executor: str, config: Mapping[str, Any], plan: planner_pb2.Plan) -> None:
    """Makes the model that is called `name` from now on."""
    from bench import speed_steps

    makers: dict[str, Callable[..., speed_steps.Contender]]
    makers = {STOCK: speed_steps.Stock, STREAMING: speed_steps.Streaming}
    if executor == TILED:
        from bench.speed_tiled import Tiled

        makers[TILED] = Tiled
    _contenders[name] = makers[executor](config, plan, speed_steps.find_device())


def weigh(name: str, plan: planner_pb2.Plan) -> Weighed:
    """Prepares for the plan's window and runs a step with its memory tracked."""
    from bench import speed_steps

    return speed_steps.weigh(_contenders[name], plan)


def time_step(name: str, plan: planner_pb2.Plan) -> Timed:
    """One step of a model that is prepared for the plan."""
    from bench import speed_steps

    return speed_steps.time_step(_contenders[name], plan)


def release(name: str) -> None:
    """Frees what the plan's window took."""
    _contenders[name].release()
