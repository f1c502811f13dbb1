"""From the stages of a step of few layers, or of some chunks, to a step of all."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds of a streaming step.

    seconds: every layer but the last forward, the last to the loss and back, the others backward.
    loss: within the last layer's. other: what is left of the step, the optimizer above all.
    made_again: by layer, outputs that backward made again; they are in the stage of the last layer
    of their segment. interval: between kept inputs.
    """

    seconds: Sequence[float]
    loss: float
    other: float
    made_again: Mapping[int, float]
    interval: int = 1

    @property
    def layers(self) -> int:
        """Layers of the model that was run."""
        return (len(self.seconds) + 1) // 2

    @property
    def forward(self) -> Sequence[float]:
        """By layer, without the last."""
        return self.seconds[: self.layers - 1]

    @property
    def last_layer(self) -> float:
        """Of the last layer, without the loss."""
        return self.seconds[self.layers - 1] - self.loss

    @property
    def backward(self) -> list[float]:
        """By layer, without the last and without what was made again."""
        found = list(reversed(self.seconds[self.layers :]))
        for layer, seconds in self.made_again.items():
            first = layer - layer % self.interval
            found[min(first + self.interval, len(found)) - 1] -= seconds
        return found

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of the parts of the step, as they ran."""
        return {
            "forward": sum(self.forward), "last_layer": self.last_layer, "loss": self.loss,
            "backward": sum(self.seconds[self.layers :]), "other": self.other,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Share:
    """All over what was run: chunks of a layer, and chunks with targets."""

    chunks: float = 1.0
    target_chunks: float = 1.0


def per_layer(stages: Stages, share: Share) -> dict[str, float | None]:
    """Seconds of one layer between the first and the last."""
    again = stages.made_again.values()
    return {
        "forward": share.chunks * _middle(stages.forward),
        "backward": share.chunks * _middle(stages.backward),
        "output_made_again": share.chunks * statistics.mean(again) if again else None,
    }


def full_step_seconds(stages: Stages, share: Share, layers: int) -> float:
    """Seconds of a step of a model of so many layers over the whole window.

    First and last layer and the loss once, all others like those between; what is left of the step
    in proportion to the layers. Raises `ValueError` when there was no layer between.
    """
    if stages.layers < 3:
        raise ValueError(f"{stages.layers} layers have none between the first and the last")
    one = per_layer(stages, share)
    ends = (stages.forward[0], stages.last_layer, stages.backward[0])
    made_again = sum(1 for layer in range(1, layers - 1) if layer % stages.interval)
    return (
        share.chunks * sum(ends)
        + (layers - 2) * ((one["forward"] or 0.0) + (one["backward"] or 0.0))
        + made_again * (one["output_made_again"] or 0.0)
        + share.target_chunks * stages.loss
        + stages.other * layers / stages.layers
    )


def _middle(by_layer: Sequence[float]) -> float:
    """Of the layers after the first."""
    return statistics.mean(by_layer[1:] or by_layer)
