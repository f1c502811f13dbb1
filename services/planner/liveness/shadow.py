"""A shadow of autograd: runs a layer's forward and backward on sizes instead of tensors.

The peak of a training step is decided by which tensors are alive at one moment, and that by two
things: what each operation saves for its backward, and when the last reference to a tensor goes.
Here every tensor is a size in bytes per token, every operation allocates and saves what PyTorch's
does, and Python's own reference counts free it, as they do in PyTorch. So a layer written once in
this vocabulary (`layers.py`) gives the exact working memory of its recompute and backward, for any
widths, in well under a millisecond per layer and without torch.

Checked against the storage-tracking oracle in `bench/memory.py` (formula id `layer.liveness`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Meter:
    """Bytes per token alive now, by memory line, and at the highest moment so far."""

    live: float = 0.0
    lines: dict[str, float] = field(default_factory=dict)
    peak: float = 0.0
    peak_lines: dict[str, float] = field(default_factory=dict)
    saving: bool = True
    save_count: int = 0
    stop_after_save: int = 0
    muted: bool = False
    sequence: int = 0

    def save(self) -> None:
        """Called by an operation about to save something. Recomputation under activation
        checkpointing stops at the last save (PyTorch's `early_stop`): what would be computed
        after it takes no memory."""
        self.save_count += 1
        if self.save_count == self.stop_after_save:
            self.muted = True

    def change(self, size: float, line: str) -> None:
        """Adds (or, negative, frees) `size` bytes per token under `line`."""
        self.live += size
        self.lines[line] = self.lines.get(line, 0.0) + size
        if self.live > self.peak:
            self.peak = self.live
            self.peak_lines = dict(self.lines)


class Storage:
    """Memory that lives as long as something refers to it."""

    __slots__ = ("line", "meter", "size")

    def __init__(self, meter: Meter, size: float, line: str) -> None:
        self.meter, self.line = meter, line
        self.size = 0.0 if meter.muted else size
        meter.change(self.size, line)

    def __del__(self) -> None:
        self.meter.change(-self.size, self.line)


Backward = Callable[["Tensor"], Sequence["Tensor | None"]]


class Node:
    """One recorded operation. `backward` maps the gradient of its output to those of its inputs."""

    __slots__ = ("backward", "inputs", "sequence")

    def __init__(self, meter: Meter, inputs: Sequence[Node], backward: Backward) -> None:
        meter.sequence += 1
        self.sequence = meter.sequence
        self.inputs, self.backward = list(inputs), backward

    def __lt__(self, other: Node) -> bool:
        return self.sequence > other.sequence  # autograd runs the newest ready node first


class Tensor:
    """A tensor as its width: bytes per element and elements per token."""

    __slots__ = ("element_bytes", "meter", "node", "storage", "width")

    def __init__(
        self,
        meter: Meter,
        width: float,
        element_bytes: int,
        line: str = "activations",
        storage: Storage | None = None,
    ) -> None:
        self.meter, self.width, self.element_bytes = meter, width, element_bytes
        self.storage = storage or Storage(meter, width * element_bytes, line)
        self.node: Node | None = None

    def like(
        self, width: float | None = None, element_bytes: int | None = None, line: str | None = None
    ) -> Tensor:
        """A new tensor on the same line; same width and dtype unless given."""
        return Tensor(
            self.meter,
            self.width if width is None else width,
            element_bytes or self.element_bytes,
            line or self.storage.line,
        )

    def view(self, width: float | None = None) -> Tensor:
        """The same memory under another shape; gradients pass through unchanged."""
        result = Tensor(
            self.meter,
            self.width if width is None else width,
            self.element_bytes,
            storage=self.storage,
        )
        result.node = self.node
        return result

    def record(self, backward: Backward, *inputs: Tensor) -> Tensor:
        """Records how this tensor was made. Under no_grad nothing is kept."""
        if self.meter.saving:
            self.node = Node(
                self.meter, [tensor.node for tensor in inputs if tensor.node], backward
            )
        return self


def leaf(meter: Meter, width: float, element_bytes: int, line: str = "activations") -> Tensor:
    """A tensor whose gradient is wanted at the end: a layer's input."""
    tensor = Tensor(meter, width, element_bytes, line)
    return tensor.record(lambda _: ())


def run_backward(output: Tensor, incoming: list[Tensor]) -> None:
    """Walks the graph from `output`; frees what each node saved once it has run.

    `incoming` holds the gradient of `output` and is emptied, so that nobody else keeps it alive.
    """
    assert output.node is not None
    waiting = _consumers(output.node)
    buffers: dict[Node, Tensor] = {output.node: incoming.pop()}
    ready = [output.node]
    del output
    while ready:
        node = heapq.heappop(ready)
        gradients = list(node.backward(buffers.pop(node)))
        node.backward = _spent
        for position, target in enumerate(node.inputs):
            _accumulate(buffers, target, gradients[position])
            gradients[position] = None
            waiting[target] -= 1
            if waiting[target] == 0:
                heapq.heappush(ready, target)
        node.inputs = []


def _spent(_: Tensor) -> Sequence[Tensor | None]:
    raise AssertionError("a node's backward ran twice")


def _consumers(root: Node) -> dict[Node, int]:
    counts: dict[Node, int] = {}
    stack, seen = [root], {root}
    while stack:
        for target in stack.pop().inputs:
            counts[target] = counts.get(target, 0) + 1
            if target not in seen:
                seen.add(target)
                stack.append(target)
    return counts


def _accumulate(buffers: dict[Node, Tensor], target: Node, gradient: Tensor | None) -> None:
    assert gradient is not None
    earlier = buffers.pop(target, None)
    buffers[target] = gradient if earlier is None else gradient.like()
