"""Everything of a step that grows with the window: allocated once, used in every step.

Shapes: B batch, C tokens of a chunk, H query heads, D head dim, E hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from services.trainer.engine.streaming.anatomy import Anatomy
from services.trainer.engine.streaming.block_attention import Attended
from services.trainer.engine.streaming.chunks import Chunk, chunks_of
from services.trainer.engine.streaming.layer_attention import KeyValueMemory
from services.trainer.engine.streaming.settings import StreamingSettings
from services.trainer.engine.streaming.stores import Field, Pages, Store, make_store


@dataclass
class Workspace:
    """Stores and key memory of one executor.

    layer_inputs: one page per layer and chunk. hidden: one page per chunk; the last layer's output,
    then the gradient of the hidden states between two layers. attention_outputs: one page per layer
    and chunk, or None where attention is computed again.
    """

    anatomy: Anatomy
    settings: StreamingSettings
    device: torch.device
    layer_inputs: Store = field(init=False)
    hidden: Store = field(init=False)
    attention_outputs: Store | None = field(init=False, default=None)
    key_memory: KeyValueMemory = field(init=False)

    def __post_init__(self) -> None:
        settings, layers = self.settings, len(self.anatomy.adapters)
        chunks = len(chunks_of(settings.tokens, settings.chunk_tokens))
        hidden = (self._hidden_field(),)
        self.layer_inputs = self._store(hidden, layers * chunks, settings.layer_inputs_on_host)
        self.hidden = self._store(hidden, chunks, settings.hidden_gradients_on_host)
        if settings.keeps_attention_outputs:
            outputs, on_host = self._output_fields(), settings.attention_outputs_on_host
            self.attention_outputs = self._store(outputs, layers * chunks, on_host)
        batch, tokens = settings.batch_size, settings.tokens
        self.key_memory = KeyValueMemory(self.anatomy.heads, batch, tokens)
        self._chunks = chunks

    def page(self, layer: int, chunk: Chunk) -> int:
        """Number of the page of a layer's chunk."""
        return layer * self._chunks + chunk.index

    def write_attended(self, page: int, chunk: Chunk, attended: Attended) -> None:
        """Keeps what attention returned, if the plan wants it kept."""
        if self.attention_outputs is not None:
            tensors = (attended.output_bchd, attended.lse_bhc)
            self.attention_outputs.write(page, chunk.length, tensors)

    def read_attended(self, page: int, chunk: Chunk, following: int | None) -> Attended | None:
        """What attention returned in forward; None where it was not kept."""
        if self.attention_outputs is None:
            return None
        return Attended(*self.attention_outputs.read(page, chunk.length, following))

    def _store(self, fields: tuple[Field, ...], count: int, on_host: bool) -> Store:
        pages = Pages(fields, self.settings.chunk_tokens, count)
        return make_store(pages, self.device, on_host=on_host)

    def _hidden_field(self) -> Field:
        batch, size = self.settings.batch_size, self.anatomy.hidden_size
        return Field(lambda tokens: (batch, tokens, size), self.anatomy.dtype)

    def _output_fields(self) -> tuple[Field, Field]:
        """Output and log-sum-exp."""
        batch, heads = self.settings.batch_size, self.anatomy.heads
        return (
            Field(lambda n: (batch, n, heads.query_heads, heads.head_dim), heads.dtype),
            Field(lambda n: (batch, heads.query_heads, n), torch.float32),
        )
