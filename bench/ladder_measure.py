"""Steps of few layers and chunks under fake tensors, and what follows from them for a whole row.

All layers are alike, and so are all chunks: each stage of a step takes what is linear in how many
there are, and the peak is the highest stage. Which one that is may change with the depth, so stages
are extended one by one. Two depths and two lengths give the lines; tests/unit/bench/test_ladder.py
checks others, and `bench.ladder` runs some rows whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoConfig

from bench import oracle
from bench.ladder_plans import Planned
from elite.planner.v1 import planner_pb2 as pb
from services.trainer.engine import executors
from services.trainer.engine.memory_tracking import StorageTracker, counted_as_host
from services.trainer.engine.streaming import stores
from services.trainer.engine.streaming.page_files import BLOCK_BYTES, FilePages, PageFilePlace
from services.trainer.engine.streaming.weights import stream_weights

# Chunks of the two windows that stand for a longer one, and the fewest layers of a step: the last,
# one between, the first.
CHUNKS = (3, 6)
_FEWEST_LAYERS = 3
# What a whole step of the resident executor is called, which has no stages.
_STEP = "step"


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes of one step.

    static: weights, adapters and the device's part of streamed weights. stages: of each stage the
    peak beyond them, on the device. stores: in host memory, without streamed weights. disk: page
    files.
    """

    static_bytes: int
    stages: Mapping[str, int]
    stores_bytes: int
    disk_bytes: int

    @property
    def working_bytes(self) -> int:
        """The highest stage: what the step takes on the device beyond weights and adapters."""
        return max(self.stages.values())

    @property
    def phases(self) -> dict[str, int]:
        """The same by phase, as a plan names them: the first word of a stage."""
        found: dict[str, int] = {}
        for stage, peak in self.stages.items():
            phase = stage.split()[0]
            found[phase] = max(peak, found.get(phase, 0))
        return found


@dataclass(frozen=True, slots=True)
class Extended:
    """A row's usage, and the layers and tokens of the steps that were run for it."""

    usage: Usage
    layers: tuple[int, ...]
    tokens: tuple[int, ...]


def extended(planned: Planned, *, fake: bool = True) -> Extended:
    """What the row takes, from steps small enough to run."""
    lengths, layers = windows(planned), depths(planned)
    by_depth = {
        depth: line(
            {n: measure(planned, depth, n, fake=fake) for n in lengths}, planned.tier.tokens
        )
        for depth in layers
    }
    return Extended(line(by_depth, planned.subject.shape.layer_count), layers, lengths)


def windows(planned: Planned) -> tuple[int, ...]:
    """Lengths to measure: with the last chunk of the row's window; the row's own if it is short."""
    tokens, chunk = planned.tier.tokens, planned.candidate.memory.chunk_tokens
    count = -(-tokens // chunk) if planned.chosen.streaming else 1
    return (tokens,) if count <= CHUNKS[-1] else tuple(tokens - (count - n) * chunk for n in CHUNKS)


def depths(planned: Planned) -> tuple[int, ...]:
    """Depths to measure: the smallest two that keep a layer's input and end a segment alike."""
    layers, interval = planned.subject.shape.layer_count, planned.chosen.layer_input_interval
    fewest = max(interval + 1, _FEWEST_LAYERS)
    alike = range(fewest + (layers - fewest) % interval, layers + 1, interval)
    few = tuple(alike[:2]) if planned.chosen.streaming else ()
    return few if len(few) == 2 else (layers,)


def line(points: Mapping[int, Usage], at: int) -> Usage:
    """The usage at a place on the line through one or two points."""
    (begin, first), *others = points.items()
    if not others:
        return first
    ((end, last),) = others

    def on_line(read: Callable[[Usage], int]) -> int:
        grown = (read(last) - read(first)) * (at - begin)
        return read(first) + round(grown / (end - begin))

    def stage(name: str) -> int:
        return on_line(lambda usage: usage.stages[name])

    return Usage(
        on_line(lambda usage: usage.static_bytes),
        {name: stage(name) for name in first.stages},
        on_line(lambda usage: usage.stores_bytes),
        on_line(lambda usage: usage.disk_bytes),
    )


def slope(points: Mapping[int, Usage]) -> float:
    """Device bytes a token, between the shortest and the longest window."""
    shortest, longest = min(points), max(points)
    grown = points[longest].working_bytes - points[shortest].working_bytes
    return grown / (longest - shortest)


def measure(planned: Planned, layers: int, tokens: int, *, fake: bool = True) -> Usage:
    """One step of the plan, with so many layers, over so many tokens."""
    config = AutoConfig.for_model(**{**planned.subject.config, "num_hidden_layers": layers})
    with _observed() as seen:
        found = oracle.measure_step(config, shortened(planned.message, tokens), fake=fake)
    peaks = _by_stage(seen.peaks) if seen.peaks else {_STEP: found.peak_bytes}
    return Usage(
        found.static_bytes,
        {name: peak - found.static_bytes for name, peak in peaks.items()},
        found.host_bytes - seen.weights_bytes,
        seen.files_bytes,
    )


def shortened(plan: pb.Plan, tokens: int) -> pb.Plan:
    """The plan for a shorter window, whose targets fill the last two chunks where the plan's do.

    NF4 weights cannot be faked and stay on the device in 16 bit: only what is beyond them is of use
    then.
    """
    small = pb.Plan()
    small.CopyFrom(plan)
    if tokens < plan.context_tokens + plan.target_tokens:
        chunk = plan.execution.streaming.chunk_tokens
        # The row before the first target's is in the loss as well.
        two_chunks = chunk + (tokens - 1) % chunk
        small.target_tokens = min(plan.target_tokens, two_chunks)
        small.context_tokens = tokens - small.target_tokens
    if plan.execution.base_precision == pb.BASE_PRECISION_NF4:
        small.execution.weight_placement = pb.PLACEMENT_DEVICE
    return small


def _by_stage(peaks: list[int]) -> dict[str, int]:
    """From the peaks of all stages: layers up, the last layer to the loss and back, layers down."""
    last, *others = peaks[len(peaks) // 2 :]
    first = others[-1] if others else last
    return {
        "forward": max(peaks[: len(others)], default=last),
        "last_layer": last,
        "backward between": max(others[:-1], default=first),
        "backward of the first layer": first,
    }


@dataclass
class _Observed:
    """What is seen of a step beside its peak. peaks: of each stage, on the device.

    weights: of streamed weights, in host memory, where they come in slabs and not by layer. files:
    of page files.
    """

    trackers: list[StorageTracker] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    weights_bytes: int = 0
    files_bytes: int = 0

    def tracker(self) -> StorageTracker:
        """The one the step is measured with."""
        self.trackers.append(StorageTracker())
        return self.trackers[-1]

    def stream_weights(self, *arguments: Any) -> Any:
        """The engine's, with its slabs counted."""
        with StorageTracker() as tracker:
            streamed = stream_weights(*arguments)
        self.weights_bytes += tracker.host_peak_bytes
        return streamed

    def page_file(self, count: int, page_bytes: int, place: PageFilePlace) -> _Unwritten:
        """Counted instead of made."""
        del place
        file = _Unwritten(-(-page_bytes // BLOCK_BYTES) * BLOCK_BYTES)
        self.files_bytes += count * file.page_bytes
        return file

    def make_executor(self, model: Any, plan: pb.Plan) -> Any:
        """The engine's, whose every stage is noted where it has stages."""
        executor: Any = executors.make_executor(model, plan, page_folder=Path("unwritten"))
        is_streaming = plan.execution.executor == pb.EXECUTOR_STREAMING
        return _Noted(executor, self) if is_streaming else executor

    def resume(self, workspace: Any) -> tuple[int, float]:
        """As a journal: no stage is done, and the loss is not known."""
        del workspace
        return 0, 0.0

    def boundary(self, workspace: Any, stages: tuple[int, int], loss: torch.Tensor) -> None:
        """As a journal: a stage is done."""
        del workspace, stages, loss
        (tracker,) = self.trackers
        self.peaks.append(tracker.peak_bytes)
        tracker.reset_peak()


@dataclass
class _Noted:
    """A streaming executor that tells of its stages as it tells a journal."""

    executor: Any
    seen: _Observed

    def backward(self, window_bs: torch.Tensor, gradient_scale: float) -> Any:
        """The executor's."""
        return self.executor.backward(window_bs, gradient_scale, self.seen)


@contextmanager
def _observed() -> Iterator[_Observed]:
    """Inside, the step of `bench.oracle` is watched; page files are counted, not made."""
    seen = _Observed()
    with (
        patch.object(oracle, "StorageTracker", seen.tracker),
        patch.object(oracle, "stream_weights", seen.stream_weights),
        patch.object(oracle, "make_executor", seen.make_executor),
        patch.object(stores, "PageFile", seen.page_file),
        patch.object(stores, "FilePages", _Unmoved),
    ):
        yield seen


@dataclass
class _Unwritten:
    """A page file of which only the size counts."""

    page_bytes: int
    written_bytes: int = 0


class _Unmoved(FilePages):
    """The buffers of a page file beside a device with memory of its own; nothing is moved.

    Files are read and written by a thread, which fake tensors do not follow.
    """

    def __init__(self, file: Any, device: torch.device) -> None:
        self.file, size = file, file.page_bytes
        count = 3  # as FilePages has them: two to read, one to write
        with counted_as_host():
            self._host = [_bytes(size + BLOCK_BYTES, device) for _ in range(count)]
        self.buffers = [_bytes(size, device) for _ in range(count)]

    def load(self, page: int, buffer: int) -> None:
        """Nothing."""

    def save(self, page: int, buffer: int) -> None:
        """Nothing."""

    def wait_for(self, buffer: int) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


def _bytes(size: int, device: torch.device) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device=device)
