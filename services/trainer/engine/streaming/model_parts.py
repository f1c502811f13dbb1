"""A Hugging Face model taken apart without knowing its family.

The model's own forward runs with its decoder layers replaced by recorders that pass their input
on. It makes what each layer is called with for a chunk (position embeddings, mask, keyword
arguments), and is left there; when the last recorder passes other hidden states on, it applies the
final norm. Which module that is shows the first time; later it is called by itself.

Shapes: B batch, C tokens of a chunk, E hidden.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from services.trainer.engine.decoder import backbone, decoder_layers
from services.trainer.engine.failures import BAD_MODEL, EngineError

_ORIGINAL = "original_forward"


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What a layer is called with beside the hidden states."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class _CallReady(Exception):  # noqa: N818 - a way out of the model, not an error
    """The wanted layer was called, with what the first layer was given."""

    def __init__(self, embeddings_bce: torch.Tensor) -> None:
        super().__init__()
        self.embeddings_bce = embeddings_bce


@dataclass
class _Recording:
    """One pass of the model's forward over recorders; it ends at the wanted layer, if any."""

    wanted: int | None = None
    # What the last layer seems to return.
    substitute_bce: torch.Tensor | None = None
    # Of the layers that were visited.
    calls: list[LayerCall] = field(default_factory=list)
    passed_bce: torch.Tensor | None = None


@dataclass
class ModelParts:
    """The layers, and the model around them. Changes the layers' `forward` for good."""

    model: Any
    layers: list[nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        self.layers = list(decoder_layers(self.model))
        self._recording: _Recording | None = None
        # What layers return behind their hidden states; None: not a tuple.
        self._returned: list[tuple[None, ...] | None] = [None] * len(self.layers)
        self._final_norm: nn.Module | None = None
        self._is_final_norm_known = False
        for index, layer in enumerate(self.layers):
            # The last to take a model apart has it; an earlier one's recorder goes.
            forward = getattr(layer.forward, _ORIGINAL, layer.forward)
            layer.forward = self._recordable(index, forward)

    def call_of(
        self, layer: int, token_ids_bc: torch.Tensor, begin: int
    ) -> tuple[torch.Tensor, LayerCall]:
        """What the model would call a layer with, for a chunk that begins at token `begin`.

        After the embeddings, (B, C, E), which are what the first layer is given.
        """
        embeddings_bce, calls = self.calls_to(layer, token_ids_bc, begin)
        return embeddings_bce, calls[layer]

    def calls_to(
        self, layer: int, token_ids_bc: torch.Tensor, begin: int
    ) -> tuple[torch.Tensor, list[LayerCall]]:
        """The same for all layers up to this one, which share what the model makes for them."""
        recording = _Recording(wanted=layer)
        try:
            with torch.no_grad():
                self._pass(recording, token_ids_bc, begin)
        except _CallReady as ready:
            return ready.embeddings_bce, recording.calls
        raise self._refused(f"does not call its layer {layer}")

    def run(self, layer: int, hidden_bce: torch.Tensor, call: LayerCall) -> torch.Tensor:
        """The layer's output, (B, C, E)."""
        output = self.layers[layer](hidden_bce, *call.arguments, **call.keywords)
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def finish(
        self, hidden_bce: torch.Tensor, token_ids_bc: torch.Tensor, begin: int
    ) -> torch.Tensor:
        """What the model makes of the last layer's output before its head: the final norm.

        Through the whole model, until a module is seen to do it alone: past the recorders of 28
        layers it takes twelve times as long, and there are many tiles.
        """
        if self._final_norm is not None:
            finished: torch.Tensor = self._final_norm(hidden_bce)
            return finished
        if self._is_final_norm_known:
            return self._pass_to_end(hidden_bce, token_ids_bc, begin)
        with _readers_of(hidden_bce, backbone(self.model)) as readers:
            finished = self._pass_to_end(hidden_bce, token_ids_bc, begin)
        self._final_norm = next((module for module, made in readers if made is finished), None)
        self._is_final_norm_known = True
        return finished

    def _pass_to_end(
        self, hidden_bce: torch.Tensor, token_ids_bc: torch.Tensor, begin: int
    ) -> torch.Tensor:
        recording = _Recording(substitute_bce=hidden_bce)
        finished = self._pass(recording, token_ids_bc, begin)
        if len(recording.calls) != len(self.layers):
            raise self._refused(f"called {len(recording.calls)} of its {len(self.layers)} layers")
        return finished

    def whole(self, token_ids_bs: torch.Tensor) -> torch.Tensor:
        """The model's own forward, nothing recorded: hidden states after the final norm."""
        return self._forward(token_ids_bs, 0)

    def check_frequencies(self, tokens: int, device: torch.device) -> None:
        """Raises `EngineError` (BAD_MODEL) where those of a window depend on what is passed."""
        positions = [torch.tensor([one], device=device) for one in ([1], [1, tokens - 1])]
        changing = _changing(self.model)
        with frequencies_of_window(self.model, tokens, device):
            for module in changing:
                alone, within = (_embeddings(module, positions_bs) for positions_bs in positions)
                for one, other in zip(alone, within, strict=True):
                    if not torch.equal(one, other[:, :1]):
                        raise self._refused("has positions that depend on what is passed")

    def _pass(self, recording: _Recording, token_ids_bc: torch.Tensor, begin: int) -> torch.Tensor:
        self._recording = recording
        try:
            return self._forward(token_ids_bc, begin)
        finally:
            self._recording = None

    def _forward(self, token_ids_bc: torch.Tensor, begin: int) -> torch.Tensor:
        length, device = token_ids_bc.shape[1], token_ids_bc.device
        positions = torch.arange(begin, begin + length, device=device)[None]
        # An explicit mask of ones keeps transformers from looking for packed sequences, which
        # would have to wait for the device.
        hidden: torch.Tensor = backbone(self.model)(
            input_ids=token_ids_bc, attention_mask=torch.ones_like(token_ids_bc),
            position_ids=positions, use_cache=False,
        )[0]  # fmt: skip
        return hidden

    def _recordable(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def recordable(*arguments: Any, **keywords: Any) -> Any:
            """The layer, or while it is recorded its first argument."""
            if self._recording is None:
                result = forward(*arguments, **keywords)
                self._returned[index] = _nothing_more(result)
                return result
            passed = self._record(self._recording, index, arguments, keywords)
            returned = self._returned[index]
            return passed if returned is None else (passed, *returned)

        setattr(recordable, _ORIGINAL, forward)
        return recordable

    def _record(
        self, recording: _Recording, index: int, arguments: Any, keywords: dict[str, Any]
    ) -> torch.Tensor:
        """Notes the call; returns what seems to be the layer's output."""
        if not arguments:
            raise self._refused("gives its layers no hidden states first")
        hidden, *others = arguments
        expected = recording.passed_bce
        visited = len(recording.calls)
        if index != visited or (expected is not None and hidden is not expected):
            raise self._refused(f"does something of its own before layer {index}")
        recording.calls.append(LayerCall(tuple(others), keywords))
        if index == recording.wanted:
            # The layers before passed on what the first was given.
            raise _CallReady(hidden)
        is_last = index == len(self.layers) - 1
        passed = recording.substitute_bce if is_last else None
        recording.passed_bce = hidden if passed is None else passed
        return recording.passed_bce

    def _refused(self, problem: str) -> EngineError:
        name = self.model.config.model_type
        fix = "choose another model, or a plan with the resident executor"
        return EngineError(
            BAD_MODEL, f"{name} {problem}: the streaming executor cannot run it", fix
        )


def _nothing_more(result: Any) -> tuple[None, ...] | None:
    """The end of a tuple where nothing is in it. What is, no recorder can make."""
    if not isinstance(result, tuple):
        return None
    return () if any(one is not None for one in result[1:]) else (None,) * (len(result) - 1)


@contextmanager
def _readers_of(tensor: torch.Tensor, model: nn.Module) -> Iterator[list[tuple[nn.Module, object]]]:
    """Modules that are called inside with this very tensor and nothing else, and what they give."""
    readers: list[tuple[nn.Module, object]] = []

    def note(module: nn.Module, given: Any, keywords: dict[str, Any], made: object) -> None:
        """Keeps a module that was called with the tensor alone, and what it gave."""
        if len(given) == 1 and given[0] is tensor and not keywords:
            readers.append((module, made))

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in model.modules()]
    try:
        yield readers
    finally:
        for hook in hooks:
            hook.remove()


# Kinds of rotary frequencies that transformers changes with the length of what it is given.
_CHANGING = ("dynamic", "longrope")
_FIXED = "as set"


@contextmanager
def frequencies_of_window(model: Any, tokens: int, device: torch.device) -> Iterator[None]:
    """Inside, rotary frequencies are those for a window of so many tokens, whatever is passed.

    A chunk alone would look like a shorter window.
    """
    changing = _changing(model)
    kinds = [module.rope_type for module in changing]
    last = torch.tensor([[tokens - 1]], device=device)
    for module, kind in zip(changing, kinds, strict=True):
        _embeddings(module, last)
        module.rope_type = dict.fromkeys(kind, _FIXED) if isinstance(kind, dict) else _FIXED
    try:
        yield
    finally:
        for module, kind in zip(changing, kinds, strict=True):
            module.rope_type = kind


def _embeddings(module: Any, positions_bs: torch.Tensor) -> list[torch.Tensor]:
    """Cosines and sines, (B, S, D), of every kind of layer."""
    unused, kind = torch.empty((), device=positions_bs.device), module.rope_type
    return [
        table
        for layer_type in (kind if isinstance(kind, dict) else [None])
        for table in module(unused, positions_bs, *([layer_type] if layer_type else []))
    ]


def _changing(model: Any) -> list[Any]:
    """Modules whose frequencies would be those of what is passed."""
    return [module for module in backbone(model).modules() if _changes(module)]


def _changes(module: nn.Module) -> bool:
    kind = getattr(module, "rope_type", None)
    kinds = kind.values() if isinstance(kind, dict) else [kind]
    return any(changing in str(one) for one in kinds for changing in _CHANGING)
