"""The streaming executor: layer by layer, chunk by chunk, with exact gradients.

The device holds the keys and values of one layer and works on one chunk; everything else that
grows with the window waits in stores. Forward takes chunks in order, each attending to all before
it. Backward takes layers and chunks in reverse: a layer's keys are made again for the whole window,
then each chunk is run again under autograd. Its attention adds to the gradients of earlier keys, so
that a chunk's own are complete when its turn comes. The last layer has no forward of its own: its
chunks go to the loss and back while autograd has them.

Shapes: B batch, S tokens of the window, C tokens of a chunk, E hidden.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from services.trainer.engine.failures import INTERNAL, EngineError
from services.trainer.engine.loss import OutputHead
from services.trainer.engine.step_meter import BACKWARD, FORWARD, LOSS, StepMeter
from services.trainer.engine.streaming.adapted_linears import add_in_place
from services.trainer.engine.streaming.adapter_gradients import AdapterGradients
from services.trainer.engine.streaming.anatomy import examine
from services.trainer.engine.streaming.attention_calls import (
    STREAMING_ATTENTION,
    attention,
    register_streaming_attention,
)
from services.trainer.engine.streaming.chunks import Chunk, chunks_of
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
        add_in_place(model)
        self.parts = ModelParts(model)
        self._anatomy = examine(self.parts, self._device)
        self._kernel = choose_kernel(settings.attention_kernel, self._anatomy.heads)
        self._loss = TargetLoss(self.parts, head, settings.target_tokens, settings.loss_tile_rows)
        self._workspace = Workspace(self._anatomy, settings, self._device)
        meter = meter or StepMeter(self._device)
        meter.count(self._workspace)
        self.phases = meter.phases
        self._last = len(self.parts.layers) - 1
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
        self.phases.settle()
        return float(loss)

    def backward(
        self, window_bs: torch.Tensor, gradient_scale: float, journal: StepJournal | None = None
    ) -> torch.Tensor:
        """The same, with the loss left on the device. journal: told of every layer that is done."""
        window = self._window(window_bs)
        done, known_loss = journal.resume(self._workspace) if journal else (0, 0.0)
        loss = torch.tensor(known_loss, dtype=torch.float32, device=self._device)
        last = self._last
        count = 2 * last + 1
        with frequencies_of_window(self._model, window.tokens, self._device):
            for stage in range(done, count):
                if stage < last:
                    with self.phases.timed(FORWARD):
                        self._forward_layer(window, stage, is_training=True)
                elif stage == last:
                    with self.phases.timed(BACKWARD):
                        loss = self._last_layer(window, gradient_scale)
                else:
                    with self.phases.timed(BACKWARD):
                        self._backward_layer(window, count - 1 - stage)
                if journal:
                    journal.boundary(self._workspace, (stage + 1, count), loss)
        return loss

    @torch.no_grad()
    def evaluate(self, window_bs: torch.Tensor) -> float:
        """Loss of a window, without gradients."""
        window = self._window(window_bs)
        with frequencies_of_window(self._model, window.tokens, self._device):
            losses = [
                self._loss.of_chunk(output_bce, window.token_ids_bs, chunk)
                for chunk, output_bce in self._last_outputs(window)
            ]
        # In the order of training.
        return float(sum(reversed(losses)))

    @torch.no_grad()
    def last_hidden_states(self, window_bs: torch.Tensor) -> torch.Tensor:
        """Hidden states after the final norm, (B, S, E)."""
        window = self._window(window_bs)
        window.with_targets.update(chunk.index for chunk in window.chunks)
        with frequencies_of_window(self._model, window.tokens, self._device):
            finished = [
                self.parts.finish(output_bce, self._token_ids(window, chunk), chunk.begin)
                for chunk, output_bce in self._last_outputs(window)
            ]
        return torch.cat(finished, dim=1)

    def close(self) -> None:
        """Lets the page files go, which outlive the object otherwise. No step may follow."""
        self._workspace.close()

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
        self._inputs_are_of = None
        if self._device.type == "cuda" and not window_bs.is_cuda:
            # Copies from there wait for nothing: the device is never without work meanwhile.
            window_bs = window_bs.pin_memory()
        return _Window(window_bs, chunks, with_targets)

    # Forward

    @torch.no_grad()
    def _forward_layer(self, window: _Window, layer: int, *, is_training: bool) -> None:
        """Leaves its output, the next layer's input, in `hidden`. Not for the last layer."""
        for chunk in window.chunks:
            self._forward_chunk(window, layer, chunk, is_training=is_training)

    def _forward_chunk(
        self, window: _Window, layer: int, chunk: Chunk, *, is_training: bool
    ) -> None:
        workspace = self._workspace
        if layer == 0:
            hidden_bce, call = self._first_call(window, chunk)
        else:
            call = self._call(window, layer, chunk)
            following = (chunk.index + 1) % len(window.chunks)
            (hidden_bce,) = workspace.hidden.read(chunk.index, chunk.length, following)
        if is_training and workspace.layer_inputs.keeps(layer):
            workspace.layer_inputs.write(layer, chunk, hidden_bce)
        keep = functools.partial(workspace.keep_attention, layer, chunk) if is_training else None
        with attention(Forward(self._place(chunk), keep)):
            output_bce = self.parts.run(layer, hidden_bce, call)
        workspace.hidden.write(chunk.index, chunk.length, [output_bce])

    def _last_outputs(self, window: _Window) -> Iterator[tuple[Chunk, torch.Tensor]]:
        """Chunks with targets, and the last layer's outputs of them; nothing is kept."""
        for layer in range(self._last):
            self._forward_layer(window, layer, is_training=False)
        for chunk in window.chunks:
            hidden_bce, call = self._input(window, self._last, chunk, window.after(chunk))
            if chunk.index in window.with_targets:
                with attention(Forward(self._place(chunk))):
                    output_bce = self.parts.run(self._last, hidden_bce, call)
                yield chunk, output_bce
            else:
                self._keys_only(self._last, hidden_bce, call, self._place(chunk))

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

    # Backward

    def _last_layer(self, window: _Window, gradient_scale: float) -> torch.Tensor:
        """The loss. Forward and backward of the layer at once: nothing of it waits in between."""
        loss = torch.zeros((), dtype=torch.float32, device=self._device)
        run = functools.partial(self._run_to_loss, window, gradient_scale, loss)
        self._backward_chunks(window, self._last, run)
        return loss

    def _backward_layer(self, window: _Window, layer: int) -> None:
        if not any(self._anatomy.adapters[: layer + 1]):  # nothing from here down is trained
            return
        self._make_inputs(window, layer)
        self._backward_chunks(window, layer, functools.partial(self._run_again, window, layer))

    def _backward_chunks(self, window: _Window, layer: int, run: _Run) -> None:
        adapters = AdapterGradients(self._anatomy.adapters[layer])
        self._workspace.keys.start_gradients()
        # The last chunk's keys come with its run.
        for chunk in window.chunks[:-1]:
            self._make_keys(window, layer, chunk)
        for chunk in reversed(window.chunks):
            self._backward_chunk(window, layer, chunk, adapters, run)
        adapters.store()

    @torch.no_grad()
    def _make_keys(self, window: _Window, layer: int, chunk: Chunk) -> None:
        following = chunk.index + 1
        kept = self._workspace.read_keys(layer, chunk, following)
        if kept:
            self._place(chunk).write(*kept)
            return
        hidden_bce, call = self._input(window, layer, chunk, following)
        self._keys_only(layer, hidden_bce, call, self._place(chunk))

    def _backward_chunk(
        self, window: _Window, layer: int, chunk: Chunk, adapters: AdapterGradients, run: _Run
    ) -> None:
        """Leaves the gradient of the layer's input in `hidden`."""
        input_bce, call = self._input(window, layer, chunk, window.before(chunk))
        # Nothing below the first layer is trained.
        leaves = [input_bce.detach().requires_grad_()] if layer else []
        started = run(chunk, leaves[0] if leaves else input_bce, call)
        if not started:
            return
        wanted = [*leaves, *self._anatomy.adapters[layer]]
        edges, gradients = zip(*started, strict=True)
        found = torch.autograd.grad(edges, wanted, gradients, allow_unused=True)
        adapters.add(found[len(leaves) :])
        if leaves:
            self._workspace.hidden.write(chunk.index, chunk.length, found[:1])

    def _run_again(
        self, window: _Window, layer: int, chunk: Chunk, hidden_bce: torch.Tensor, call: LayerCall
    ) -> _Started:
        """From the layer's output, whose gradient is in `hidden`."""
        workspace = self._workspace
        stored = workspace.read_attended(layer, chunk, window.before(chunk))
        replay = Replay(self._place(chunk), stored)
        with attention(replay), without_outputs(self._anatomy.unread[layer]):
            output_bce = self.parts.run(layer, hidden_bce, call)
        following = (chunk.index - 1) % len(window.chunks)
        (gradient_bce,) = workspace.hidden.read(chunk.index, chunk.length, following)
        return [(get_gradient_edge(output_bce), gradient_bce)]

    def _run_to_loss(
        self, window: _Window, gradient_scale: float, loss: torch.Tensor,
        chunk: Chunk, hidden_bce: torch.Tensor, call: LayerCall,
    ) -> _Started:  # fmt: skip
        """From the last layer's output; without targets nothing but its keys is of use."""
        at = self._place(chunk)
        if chunk.index not in window.with_targets:
            keys_and_values = self._keys_only(self._last, hidden_bce, call, at)
            found = zip(keys_and_values, at.key_gradients(hidden_bce.dtype), strict=True)
            # In the only layer of a model, keys without an adapter lead nowhere.
            return [(get_gradient_edge(one), dk) for one, dk in found if one.requires_grad]
        with attention(Replay(at, None)):
            output_bce = self.parts.run(self._last, hidden_bce, call)
        with self.phases.timed(LOSS):
            gradient_bce = torch.zeros_like(output_bce)
            loss += self._loss.of_chunk(
                output_bce.detach(), window.token_ids_bs, chunk, gradient_bce, gradient_scale
            )
        return [(get_gradient_edge(output_bce), gradient_bce)]

    # Inputs

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
            hidden_bce, call = self._input(window, layer, chunk, following)
            attended = workspace.read_attended(layer, chunk, following)
            with attention(Known(attended) if attended else Forward(self._place(chunk))):
                output_bce = self.parts.run(layer, hidden_bce, call)
            workspace.layer_inputs.write(layer + 1, chunk, output_bce)

    def _input(
        self, window: _Window, layer: int, chunk: Chunk, following: int | None
    ) -> tuple[torch.Tensor, LayerCall]:
        """A chunk's input of a layer, (B, C, E), when forward has been, and what goes with it."""
        if layer == 0:
            return self._first_call(window, chunk)
        call = self._call(window, layer, chunk)
        if layer < self._last:
            return self._workspace.layer_inputs.read(layer, chunk, following), call
        # Where forward left it.
        (hidden_bce,) = self._workspace.hidden.read(chunk.index, chunk.length, following)
        return hidden_bce, call

    def _first_call(self, window: _Window, chunk: Chunk) -> tuple[torch.Tensor, LayerCall]:
        """The embeddings, (B, C, E), and what the first layer is called with.

        Other layers' calls go: the first comes before them all or after, and has tables of its own.
        """
        window.calls.clear()
        return self.parts.call_of(0, self._token_ids(window, chunk), chunk.begin)

    def _call(self, window: _Window, layer: int, chunk: Chunk) -> LayerCall:
        """What a layer is called with. Calls for a window of one chunk are made together, once."""
        if len(window.chunks) > 1:
            return self.parts.call_of(layer, self._token_ids(window, chunk), chunk.begin)[1]
        if not window.calls:
            token_ids_bc = self._token_ids(window, chunk)
            window.calls.extend(self.parts.calls_to(self._last, token_ids_bc, chunk.begin)[1])
        return window.calls[layer]

    def _token_ids(self, window: _Window, chunk: Chunk) -> torch.Tensor:
        token_ids_bc = window.token_ids_bs[:, chunk.begin : chunk.end]
        return token_ids_bc.to(self._device, non_blocking=True)

    def _place(self, chunk: Chunk) -> ChunkAttention:
        return ChunkAttention(
            self._kernel, self._workspace.keys, chunk, self._settings.chunk_tokens
        )


# Where autograd starts, and the gradients there.
_Started = Sequence[tuple[GradientEdge, torch.Tensor]]
# Runs a chunk of a layer under autograd, from the chunk's input.
_Run = Callable[[Chunk, torch.Tensor, LayerCall], _Started]


@dataclass(frozen=True, slots=True)
class _Window:
    """One window on its way through the layers. Token ids stay where they came from.

    calls: of all layers, once they were made for a window of one chunk.
    """

    token_ids_bs: torch.Tensor
    chunks: list[Chunk]
    with_targets: set[int]
    calls: list[LayerCall] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of the window."""
        return self.token_ids_bs.shape[1]

    def after(self, chunk: Chunk) -> int | None:
        """Index of the next chunk."""
        return chunk.index + 1 if chunk.index + 1 < len(self.chunks) else None

    def before(self, chunk: Chunk) -> int | None:
        """Index of the chunk before."""
        return chunk.index - 1 if chunk.index else None
