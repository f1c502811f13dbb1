"""The streaming executor: layer by layer, chunk by chunk, with exact gradients.

The device holds the keys and values of one layer and works on one chunk; everything else that
grows with the window waits in stores. Forward takes chunks in order, each attending to all before
it. Backward takes layers and chunks in reverse: a layer's keys are made again for the whole window,
then each chunk is run again under autograd. Its attention adds to the gradients of earlier keys, so
that a chunk's own are complete when its turn comes.

Shapes: B batch, S tokens of the window, C tokens of a chunk, E hidden.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from services.trainer.engine.failures import INTERNAL, EngineError
from services.trainer.engine.loss import OutputHead
from services.trainer.engine.step_meter import BACKWARD, FORWARD, LOSS, StepMeter
from services.trainer.engine.streaming.adapter_gradients import AdapterGradients
from services.trainer.engine.streaming.anatomy import examine
from services.trainer.engine.streaming.attention_calls import (
    STREAMING_ATTENTION,
    attention,
    register_streaming_attention,
)
from services.trainer.engine.streaming.chunks import Chunk, chunks_of
from services.trainer.engine.streaming.codecs import EXACT
from services.trainer.engine.streaming.kernels import choose_kernel
from services.trainer.engine.streaming.key_memory import Pair
from services.trainer.engine.streaming.layer_attention import (
    ChunkAttention,
    Forward,
    KeysOnly,
    KeysReady,
    Known,
    Replay,
)
from services.trainer.engine.streaming.model_parts import (
    LayerCall,
    ModelParts,
    frequencies_of_window,
)
from services.trainer.engine.streaming.settings import StreamingSettings
from services.trainer.engine.streaming.step_journal import StepJournal
from services.trainer.engine.streaming.target_loss import TargetLoss
from services.trainer.engine.streaming.unread_outputs import without_outputs
from services.trainer.engine.streaming.workspace import Workspace


class StreamingExecutor:
    """Allocates everything that grows with the window when it is made; steps reuse it.

    A model belongs to the executor made for it last.
    """

    def __init__(
        self, model: Any, settings: StreamingSettings, meter: StepMeter | None = None
    ) -> None:
        """`model` is the Hugging Face model with its adapters inside. meter: measures the steps.

        Raises `EngineError` (BAD_MODEL) for a model or kernel that cannot do it exactly.
        """
        register_streaming_attention()
        model.set_attn_implementation(STREAMING_ATTENTION)
        head = OutputHead.of(model)
        self._model, self._settings, self._device = model, settings, head.weight_ve.device
        self.parts = ModelParts(model)
        self._anatomy = examine(model, self.parts, self._device)
        self._kernel = choose_kernel(settings.attention_kernel, self._anatomy.heads)
        self._loss = TargetLoss(self.parts, head, settings.target_tokens, settings.loss_tile_rows)
        self._workspace = Workspace(self._anatomy, settings, self._device)
        meter = meter or StepMeter(self._device)
        meter.count(self._workspace)
        self._phases = meter.phases
        # Which layer's keys the workspace holds, of the whole window.
        self._keys_are_of: int | None = None
        # First layer of the segment whose inputs have been made again.
        self._inputs_are_of: int | None = None

    @property
    def attention_kernel(self) -> str:
        """Name of the kernel that every layer's attention runs on."""
        return self._kernel.name

    def step(
        self, window_bs: torch.Tensor, gradient_scale: float, journal: StepJournal | None = None
    ) -> float:
        """Loss of a window; adds `gradient_scale` times its gradient to the adapters' `.grad`."""
        loss = self.backward(window_bs, gradient_scale, journal)
        self._phases.settle()
        return float(loss)

    def backward(
        self, window_bs: torch.Tensor, gradient_scale: float, journal: StepJournal | None = None
    ) -> torch.Tensor:
        """The same, with the loss left on the device. journal: told of every layer that is done."""
        window = self._window(window_bs)
        done, known_loss = journal.resume(self._workspace) if journal else (0, 0.0)
        loss = torch.tensor(known_loss, dtype=torch.float32, device=self._device)
        count = 2 * window.layers + 1
        with frequencies_of_window(self._model, window.tokens, self._device):
            for stage in range(done, count):
                if stage < window.layers:
                    with self._phases.timed(FORWARD):
                        self._forward_layer(window, stage, is_training=True)
                elif stage == window.layers:
                    with self._phases.timed(LOSS):
                        loss = self._mean_loss(window, gradient_scale)
                else:
                    with self._phases.timed(BACKWARD):
                        self._backward_layer(window, count - 1 - stage)
                if journal:
                    journal.boundary(self._workspace, (stage + 1, count), loss)
        return loss

    def evaluate(self, window_bs: torch.Tensor) -> float:
        """Loss of a window, without gradients."""
        window = self._window(window_bs)
        with frequencies_of_window(self._model, window.tokens, self._device):
            self._forward_without_gradients(window)
            return float(self._mean_loss(window, gradient_scale=None))

    @torch.no_grad()
    def last_hidden_states(self, window_bs: torch.Tensor) -> torch.Tensor:
        """Hidden states after the final norm, (B, S, E)."""
        window = self._window(window_bs)
        window.with_targets.update(chunk.index for chunk in window.chunks)
        with frequencies_of_window(self._model, window.tokens, self._device):
            self._forward_without_gradients(window)
            finished = []
            for chunk in window.chunks:
                (hidden_bce,) = self._workspace.hidden.read(chunk.index, chunk.length)
                token_ids_bc = window_bs[:, chunk.begin : chunk.end].to(self._device)
                finished.append(self.parts.finish(hidden_bce, token_ids_bc, chunk.begin))
        return torch.cat(finished, dim=1)

    def _window(self, window_bs: torch.Tensor) -> _Window:
        batch_size, tokens = window_bs.shape
        planned, targets = self._settings.tokens, self._settings.target_tokens
        if batch_size != self._settings.batch_size or not targets < tokens <= planned:
            expected = f"({self._settings.batch_size}, {planned}), the last {targets} being targets"
            problem = f"a batch of {tuple(window_bs.shape)} tokens; the plan is for {expected}"
            raise EngineError(INTERNAL, problem, "plan for this window")
        chunks = chunks_of(tokens, self._settings.chunk_tokens)
        with_targets = {c.index for c in chunks if self._loss.rows(c, tokens)}
        self._workspace.start_window(tokens)
        self._keys_are_of = self._inputs_are_of = None
        return _Window(window_bs, chunks, with_targets, len(self.parts.layers))

    # Forward

    def _forward_without_gradients(self, window: _Window) -> None:
        for layer in range(window.layers):
            self._forward_layer(window, layer, is_training=False)

    @torch.no_grad()
    def _forward_layer(self, window: _Window, layer: int, *, is_training: bool) -> None:
        """Leaves its output in `hidden`; of the last layer, that of chunks with targets."""
        for chunk in window.chunks:
            self._forward_chunk(window, layer, chunk, is_training=is_training)
        # Backward begins with the last layer's. Keys made from an encoded input are others.
        if layer == window.layers - 1 and self._settings.layer_input_codec is EXACT:
            self._keys_are_of = layer

    def _forward_chunk(
        self, window: _Window, layer: int, chunk: Chunk, *, is_training: bool
    ) -> None:
        workspace, call = self._workspace, self._call(window, layer, chunk)
        hidden_bce = call.embeddings_bce
        if layer:
            following = (chunk.index + 1) % len(window.chunks)
            (hidden_bce,) = workspace.hidden.read(chunk.index, chunk.length, following)
        if is_training and workspace.layer_inputs.keeps(layer):
            workspace.layer_inputs.write(layer, chunk, hidden_bce)
        if not window.has_output(layer, chunk.index):
            # The last layer's keys: backward begins with them.
            keys_and_values = self._keys_only(layer, hidden_bce, call, self._place(chunk))
            if is_training:
                workspace.keep_keys(layer, chunk, keys_and_values)
            return
        keep = functools.partial(workspace.keep_attention, layer, chunk) if is_training else None
        with attention(Forward(self._place(chunk), keep)):
            output_bce = self.parts.run(layer, hidden_bce, call)
        workspace.hidden.write(chunk.index, chunk.length, [output_bce])

    def _keys_only(
        self, layer: int, hidden_bce: torch.Tensor, call: LayerCall, at: ChunkAttention
    ) -> Pair:
        """Runs a layer up to its attention; the chunk's keys and values, as autograd has them."""
        try:
            with attention(KeysOnly(at)):
                self.parts.run(layer, hidden_bce, call)
        except KeysReady as ready:
            return ready.tensors
        raise EngineError(INTERNAL, f"layer {layer} did not attend")

    # Loss

    def _mean_loss(self, window: _Window, gradient_scale: float | None) -> torch.Tensor:
        """The loss; in `hidden`, its gradient takes the place of the last layer's output."""
        total = torch.zeros((), dtype=torch.float32, device=self._device)
        with_targets = [c for c in window.chunks if c.index in window.with_targets]
        for chunk in reversed(with_targets):
            hidden = self._workspace.hidden.read(chunk.index, chunk.length)
            total += self._loss.of_chunk(hidden[0], window.token_ids_bs, chunk, gradient_scale)
            if gradient_scale is not None:
                self._workspace.hidden.write(chunk.index, chunk.length, hidden)
        return total

    # Backward

    def _make_inputs(self, window: _Window, layer: int) -> None:
        """Inputs of all layers up to this one since the last that was kept."""
        first = layer - layer % self._workspace.layer_inputs.interval
        if self._inputs_are_of != first:
            for lower in range(first, layer):
                self._make_inputs_again(window, lower)
            self._inputs_are_of = first

    @torch.no_grad()
    def _make_inputs_again(self, window: _Window, layer: int) -> None:
        """The inputs of the next layer, from this one's."""
        workspace = self._workspace
        for chunk in window.chunks:
            following = window.after(chunk)
            call = self._call(window, layer, chunk)
            hidden_bce = self._input(layer, chunk, call, following)
            attended = workspace.read_attended(layer, chunk, following)
            with attention(Known(attended) if attended else Forward(self._place(chunk))):
                output_bce = self.parts.run(layer, hidden_bce, call)
            workspace.layer_inputs.write(layer + 1, chunk, output_bce)
            self._keys_are_of = self._keys_are_of if attended else None

    def _backward_layer(self, window: _Window, layer: int) -> None:
        self._make_inputs(window, layer)
        adapters = AdapterGradients(self._anatomy.adapters[layer])
        self._workspace.keys.start_gradients()
        if self._keys_are_of != layer:
            # The last chunk's come with its run.
            for chunk in window.chunks[:-1]:
                self._make_keys_again(window, layer, chunk)
        for chunk in reversed(window.chunks):
            self._backward_chunk(window, layer, chunk, adapters)
        adapters.store()

    @torch.no_grad()
    def _make_keys_again(self, window: _Window, layer: int, chunk: Chunk) -> None:
        following = chunk.index + 1
        kept = self._workspace.read_keys(layer, chunk, following)
        if kept:
            self._place(chunk).write(*kept)
            return
        call = self._call(window, layer, chunk)
        hidden_bce = self._input(layer, chunk, call, following)
        self._keys_only(layer, hidden_bce, call, self._place(chunk))

    def _backward_chunk(
        self, window: _Window, layer: int, chunk: Chunk, adapters: AdapterGradients
    ) -> None:
        """Gradient of the layer's input from that of its output, both in `hidden`."""
        call = self._call(window, layer, chunk)
        input_bce = self._input(layer, chunk, call, window.before(chunk))
        # Nothing below the first layer is trained.
        leaves = [input_bce.detach().requires_grad_()] if layer else []
        hidden_bce = leaves[0] if leaves else input_bce
        outputs, gradients = self._run_again(window, layer, chunk, hidden_bce, call)
        wanted = [*leaves, *self._anatomy.adapters[layer]]
        found = torch.autograd.grad(outputs, wanted, gradients, allow_unused=True)
        adapters.add(found[len(leaves) :])
        if leaves:
            self._workspace.hidden.write(chunk.index, chunk.length, found[:1])

    def _run_again(
        self, window: _Window, layer: int, chunk: Chunk, hidden_bce: torch.Tensor, call: LayerCall
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """What autograd starts from: the chunk's outputs of the layer, and their gradients."""
        workspace, at = self._workspace, self._place(chunk)
        if not window.has_output(layer, chunk.index):
            keys_and_values = self._keys_only(layer, hidden_bce, call, at)
            return keys_and_values, at.key_gradients(hidden_bce.dtype)
        stored = workspace.read_attended(layer, chunk, window.before_with_output(layer, chunk))
        with attention(Replay(at, stored)), without_outputs(self._anatomy.unread[layer]):
            output_bce = self.parts.run(layer, hidden_bce, call)
        following = (chunk.index - 1) % len(window.chunks)
        (gradient_bce,) = workspace.hidden.read(chunk.index, chunk.length, following)
        return (output_bce,), (gradient_bce,)

    def _input(
        self, layer: int, chunk: Chunk, call: LayerCall, following: int | None
    ) -> torch.Tensor:
        """A chunk's input of a layer, (B, C, E)."""
        if layer == 0:
            return call.embeddings_bce
        return self._workspace.layer_inputs.read(layer, chunk, following)

    def _call(self, window: _Window, layer: int, chunk: Chunk) -> LayerCall:
        token_ids_bc = window.token_ids_bs[:, chunk.begin : chunk.end].to(self._device)
        return self.parts.call_of(layer, token_ids_bc, chunk.begin)

    def _place(self, chunk: Chunk) -> ChunkAttention:
        keys, longest = self._workspace.keys, self._settings.chunk_tokens
        return ChunkAttention(self._kernel, keys, chunk, longest)


@dataclass(frozen=True, slots=True)
class _Window:
    """One window on its way through the layers. Token ids stay where they came from."""

    token_ids_bs: torch.Tensor
    chunks: list[Chunk]
    with_targets: set[int]
    layers: int

    @property
    def tokens(self) -> int:
        """Tokens of the window."""
        return self.token_ids_bs.shape[1]

    def has_output(self, layer: int, chunk_index: int) -> bool:
        """Whether anything depends on this output: the loss needs few of the last layer's."""
        return layer < self.layers - 1 or chunk_index in self.with_targets

    def after(self, chunk: Chunk) -> int | None:
        """Index of the next chunk."""
        return chunk.index + 1 if chunk.index + 1 < len(self.chunks) else None

    def before(self, chunk: Chunk) -> int | None:
        """Index of the chunk before."""
        return chunk.index - 1 if chunk.index else None

    def before_with_output(self, layer: int, chunk: Chunk) -> int | None:
        """The same, if anything depends on that chunk's output."""
        before = self.before(chunk)
        is_needed = before is not None and self.has_output(layer, before)
        return before if is_needed else None
