"""Everything of a step that grows with the window: allocated once, used in every step.

Shapes: B batch, C tokens of a chunk, H query heads, D head dim, E hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from services.trainer.engine.streaming.anatomy import Anatomy
from services.trainer.engine.streaming.block_attention import Attended
from services.trainer.engine.streaming.chunks import Chunk, chunks_of
from services.trainer.engine.streaming.codecs import EXACT, Codec
from services.trainer.engine.streaming.key_memory import (
    DeviceKeys,
    KeyMemory,
    PagedKeys,
    Pair,
    key_fields,
    key_gradient_fields,
)
from services.trainer.engine.streaming.layer_inputs import LayerInputs
from services.trainer.engine.streaming.page_files import PageFilePlace, page_file_name
from services.trainer.engine.streaming.settings import StreamingSettings
from services.trainer.engine.streaming.stores import (
    Field,
    Pages,
    Place,
    Store,
    make_buffered_store,
    make_store,
)
from services.trainer.engine.transfers import Moved, total_moved

# Names of what forward leaves for backward.
LAYER_INPUTS, ATTENTION_OUTPUTS, KEYS = "layer-inputs", "attention-outputs", "keys"


@dataclass
class Workspace:
    """Stores and key memory of one executor.

    hidden: one page per chunk; in forward the output of the layer at work, in backward the gradient
    of its input. attention_outputs, kept_keys: one page per layer and chunk, or None where they are
    made again. Of the last layer nothing is kept.
    """

    anatomy: Anatomy
    settings: StreamingSettings
    device: torch.device
    layer_inputs: LayerInputs = field(init=False)
    hidden: Store = field(init=False)
    attention_outputs: Store | None = field(init=False)
    kept_keys: Store | None = field(init=False)
    keys: KeyMemory = field(init=False)

    def __post_init__(self) -> None:
        """Raises `EngineError` (DISK_FULL) when the disk has no room for the page files."""
        settings = self.settings
        self._stores: list[Store] = []
        self._chunks = len(chunks_of(settings.tokens, settings.chunk_tokens))
        self._last_layer = len(self.anatomy.adapters) - 1
        self.hidden = self._store(self._hidden_fields(), self._chunks, settings.hidden_gradients)
        self.layer_inputs = self._make_layer_inputs()
        pages = self._last_layer * self._chunks
        self.attention_outputs = self._store_if(
            settings.attention_outputs, self._output_fields(), pages, ATTENTION_OUTPUTS
        )
        keys = key_fields(self.anatomy.heads, settings.batch_size)
        self.kept_keys = self._store_if(settings.kept_keys, keys, pages, KEYS)
        self.keys = self._make_keys()

    @property
    def moved(self) -> Moved:
        """By all stores so far."""
        return total_moved(self._stores)

    @property
    def kept(self) -> dict[str, Store]:
        """What forward leaves for backward and nothing changes, by name."""
        stores = {
            LAYER_INPUTS: self.layer_inputs.kept,
            ATTENTION_OUTPUTS: self.attention_outputs,
            KEYS: self.kept_keys,
        }
        return {name: store for name, store in stores.items() if store is not None}

    def start_window(self, tokens: int) -> None:
        """Makes ready for a window of so many tokens."""
        for store in (self.hidden, *self.kept.values()):
            store.changed.clear()
        self.keys.start_window(tokens)

    def close(self) -> None:
        """Lets the page files go: they stay for as long as the process otherwise."""
        for store in self._stores:
            store.close()

    def keep_attention(
        self, layer: int, chunk: Chunk, keys_and_values: Pair, attended: Attended
    ) -> None:
        """Keeps what the plan wants kept of an attention call.

        keys_and_values: (B, G, C, D).
        """
        page = self._page(layer, chunk.index)
        if self.kept_keys is not None:
            tensors = [tensor.transpose(1, 2) for tensor in keys_and_values]
            self.kept_keys.write(page, chunk.length, tensors)
        if self.attention_outputs is not None:
            returned = (attended.output_bchd, attended.lse_bhc)
            self.attention_outputs.write(page, chunk.length, returned)

    def read_attended(self, layer: int, chunk: Chunk, following: int | None) -> Attended | None:
        """What attention returned in forward; None where it was not kept."""
        if self.attention_outputs is None:
            return None
        return Attended(*self._read(self.attention_outputs, layer, chunk, following))

    def read_keys(self, layer: int, chunk: Chunk, following: int | None) -> Pair | None:
        """A chunk's keys and values, (B, G, C, D); None where they were not kept."""
        if self.kept_keys is None or layer == self._last_layer:
            return None
        key, value = self._read(self.kept_keys, layer, chunk, following)
        return key.transpose(1, 2), value.transpose(1, 2)

    def _read(
        self, store: Store, layer: int, chunk: Chunk, following: int | None
    ) -> list[torch.Tensor]:
        next_page = None if following is None else self._page(layer, following)
        return store.read(self._page(layer, chunk.index), chunk.length, next_page)

    def _page(self, layer: int, chunk: int) -> int:
        return layer * self._chunks + chunk

    def _store(self, fields: tuple[Field, ...], count: int, place: Place, name: str = "") -> Store:
        pages = Pages(fields, self.settings.chunk_tokens, count)
        store = make_store(pages, self.device, place, self._file_place(name))
        self._stores.append(store)
        return store

    def _store_if(
        self, place: Place | None, fields: tuple[Field, ...], count: int, name: str = ""
    ) -> Store | None:
        return self._store(fields, count, place, name) if place and count else None

    def _file_place(self, name: str) -> PageFilePlace | None:
        """Pages that nothing changes go where another process finds them."""
        settings = self.settings
        if name and settings.journal_folder:
            return PageFilePlace(settings.journal_folder, page_file_name(name))
        return PageFilePlace(settings.page_folder) if settings.page_folder else None

    def _make_layer_inputs(self) -> LayerInputs:
        settings, others = self.settings, max(1, self._last_layer)
        interval = min(settings.layer_input_interval, others)
        kept, between = (others - 1) // interval * self._chunks, (interval - 1) * self._chunks
        encoded = self._hidden_fields(settings.layer_input_codec)
        return LayerInputs(
            interval=interval,
            chunks=self._chunks,
            kept=self._store_if(settings.layer_inputs, encoded, kept, LAYER_INPUTS),
            between=self._store_if(settings.between_layers, self._hidden_fields(), between),
        )

    def _make_keys(self) -> KeyMemory:
        settings, heads = self.settings, self.anatomy.heads
        batch, place = settings.batch_size, settings.key_values
        if place is Place.DEVICE:
            return DeviceKeys(heads, batch, settings.tokens)
        pages = Pages(key_fields(heads, batch), settings.chunk_tokens, self._chunks)
        keys = make_buffered_store(pages, self.device, place, self._file_place(""))
        self._stores.append(keys)
        gradients = self._store(key_gradient_fields(heads, batch), self._chunks, place)
        return PagedKeys(heads, batch, settings.chunk_tokens, keys, gradients)

    def _hidden_fields(self, codec: Codec = EXACT) -> tuple[Field, ...]:
        batch, size = self.settings.batch_size, self.anatomy.hidden_size
        return (Field(lambda tokens: (batch, tokens, size), self.anatomy.dtype, codec),)

    def _output_fields(self) -> tuple[Field, ...]:
        """Output and log-sum-exp."""
        batch, heads = self.settings.batch_size, self.anatomy.heads
        return (
            Field(lambda n: (batch, n, heads.query_heads, heads.head_dim), heads.dtype),
            Field(lambda n: (batch, heads.query_heads, n), torch.float32),
        )
