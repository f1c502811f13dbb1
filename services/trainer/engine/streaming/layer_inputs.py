"""Inputs of the layers: what backward starts a layer from.

The first layer's are the embeddings, which are looked up again; the last layer's are where forward
left them. Of the others every k-th is kept; those of the layers between two kept ones are made
again when backward comes there, for one segment at a time (Chen et al. 2016, https://arxiv.org/abs/1604.06174).

Shapes: B batch, C tokens of a chunk, E hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from services.trainer.engine.streaming.chunks import Chunk
from services.trainer.engine.streaming.stores import Store


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """kept: pages of every kept layer, by chunk. between: of one segment's others; None: no others.

    chunks: pages of one layer.
    """

    interval: int
    chunks: int
    kept: Store | None
    between: Store | None

    def keeps(self, layer: int) -> bool:
        """Whether forward writes this layer's inputs."""
        return layer > 0 and layer % self.interval == 0

    def write(self, layer: int, chunk: Chunk, hidden_bce: torch.Tensor) -> None:
        """Puts a chunk's input of a layer where `read` finds it."""
        store, first = self._pages(layer)
        store.write(first + chunk.index, chunk.length, [hidden_bce])

    def read(self, layer: int, chunk: Chunk, following: int | None) -> torch.Tensor:
        """A chunk's input of a layer, (B, C, E). following: the chunk that will be read next."""
        store, first = self._pages(layer)
        next_page = None if following is None else first + following
        (hidden_bce,) = store.read(first + chunk.index, chunk.length, next_page)
        return hidden_bce

    def _pages(self, layer: int) -> tuple[Store, int]:
        """The layer's store, and the first of its pages."""
        segment, offset = divmod(layer, self.interval)
        store, number = (self.between, offset - 1) if offset else (self.kept, segment - 1)
        assert store is not None, f"layer {layer} has no pages"
        return store, number * self.chunks
