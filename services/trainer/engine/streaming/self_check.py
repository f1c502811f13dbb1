"""Proves on a few tokens that a model run in parts is the model run whole.

A layer that carries something from token to token beside attention (a convolution, a recurrent
state) would lose it between chunks; nothing but the result tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from services.trainer.engine.attention import ATTENTION_NAME, attention_kernel
from services.trainer.engine.decoder import decoder_layers, last_hidden_states
from services.trainer.engine.executors.streaming import StreamingExecutor
from services.trainer.engine.failures import BAD_MODEL, EngineError
from services.trainer.engine.probe import probe_tokens
from services.trainer.engine.streaming.anatomy import HeadRecorder
from services.trainer.engine.streaming.attention_calls import attention
from services.trainer.engine.streaming.model_parts import LayerCall, ModelParts
from services.trainer.engine.streaming.settings import StreamingSettings

_CHUNK_TOKENS = 5  # the last of 16 tokens is a ragged chunk
# Relative rounding of hidden states, by bytes of the dtype: of one layer whose products have other
# shapes, with attention in blocks, and of one without attention (experts with other numbers of
# tokens).
_CHUNKS_TOLERANCE = {4: 2e-5, 2: 0.02}
_LAYER_TOLERANCE = {4: 1e-5, 2: 5e-3}


def check_streaming(model: Any, settings: StreamingSettings) -> str:
    """Name of the attention kernel in use; leaves the model with the streaming attention.

    Raises `EngineError` (BAD_MODEL) unless the executor's hidden states are the model's own.
    """
    token_ids_bs = probe_tokens(model)
    model.set_attn_implementation(ATTENTION_NAME)
    whole = _WholeRun(model)
    with torch.no_grad(), attention_kernel(settings.attention_kernel), whole.recorded():
        expected = last_hidden_states(model, token_ids_bs)
    tokens = token_ids_bs.shape[1]
    small = StreamingSettings(
        tokens, tokens - 1, _CHUNK_TOKENS, settings.loss_tile_rows, settings.attention_kernel
    )
    executor = StreamingExecutor(model, small)
    executor.parts.check_frequencies(settings.tokens, token_ids_bs.device)
    _check_layers(model, executor.parts, token_ids_bs)
    with whole.repeated(executor.parts):
        found = executor.last_hidden_states(token_ids_bs)
    for layer, (output, in_chunks) in enumerate(zip(whole.outputs, whole.in_chunks, strict=True)):
        _check_close(model, f"layer {layer}", torch.cat(in_chunks, 1), output, _CHUNKS_TOLERANCE)
    _check_close(model, "the model", found, expected, _CHUNKS_TOLERANCE)
    return executor.attention_kernel


class _WholeRun:
    """What every layer was given and made in a run of the whole model, and makes of that in chunks.

    A layer in chunks is given what it was given then. Through all layers rounding may grow without
    bound: SmolLM2's hidden states of these tokens differ by 0.6 between bfloat16 and fp32, and by
    0.13 between two ways to round to bfloat16.
    """

    def __init__(self, model: Any) -> None:
        self._layers = decoder_layers(model)
        self.inputs: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []
        self.in_chunks: list[list[torch.Tensor]] = [[] for _ in self._layers]

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Notes what the layers are given and make."""

        def note(_: Any, arguments: tuple[Any, ...], output: Any) -> None:
            """Keeps what a layer was given and made, in the order of the layers."""
            if arguments:  # else the executor refuses the model
                self.inputs.append(arguments[0].clone())
                self.outputs.append(_first_of(output).clone())

        with ExitStack() as hooks:
            for layer in self._layers:
                hooks.callback(layer.register_forward_hook(note).remove)
            yield

    @contextmanager
    def repeated(self, parts: ModelParts) -> Iterator[None]:
        """Gives the layers what they were given, chunk after chunk, and notes what they make."""
        run = parts.run

        def repeat(layer: int, hidden_bce: torch.Tensor, call: LayerCall) -> torch.Tensor:
            """The layer's output (B, C, E) for what it was given at the chunk's tokens before."""
            done = self.in_chunks[layer]
            begin = sum(chunk.shape[1] for chunk in done)
            given = self.inputs[layer][:, begin : begin + hidden_bce.shape[1]]
            done.append(run(layer, given, call))
            return done[-1]

        parts.run = repeat  # type: ignore[method-assign]
        try:
            yield
        finally:
            del parts.run


def _first_of(output: Any) -> torch.Tensor:
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@torch.no_grad()
def _check_layers(model: Any, parts: ModelParts, token_ids_bs: torch.Tensor) -> None:
    """With attention out of the way, no token may feel another: the first half is exchanged."""
    half = token_ids_bs.shape[1] // 2
    others_bs = torch.cat([token_ids_bs[:, :half].flip(1), token_ids_bs[:, half:]], dim=1)
    for layer in range(len(parts.layers)):
        with attention(HeadRecorder()):
            before, after = (
                parts.run(layer, *parts.call_of(layer, ids, 0))[:, half:]
                for ids in (token_ids_bs, others_bs)
            )
        _check_close(model, f"layer {layer}", after, before, _LAYER_TOLERANCE)


def _check_close(
    model: Any, what: str, found: torch.Tensor, expected: torch.Tensor, limits: dict[int, float]
) -> None:
    difference = float((found.float() - expected.float()).norm() / expected.float().norm())
    if not difference <= limits[expected.dtype.itemsize]:
        name = model.config.model_type
        problem = f"{name}: {what} in chunks is not {what} whole (off by {difference:.2g})"
        fix = "choose another model, or a plan with the resident executor"
        raise EngineError(BAD_MODEL, problem, fix)
