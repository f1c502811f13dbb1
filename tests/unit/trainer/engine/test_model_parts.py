"""A model in parts: what a layer is called with, and models that do more than call their layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from services.trainer.engine.decoder import decoder_layers
from services.trainer.engine.failures import EngineError
from services.trainer.engine.streaming.model_parts import ModelParts
from tests.fixtures.adapted import a_window
from tests.fixtures.engine import tiny_model


class Backbone(nn.Module):
    """Three layers between embeddings and a norm. between: what it does after each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(320, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.norm = nn.LayerNorm(8)
        self.between: Any = lambda hidden: hidden
        self.order = [0, 1, 2]
        self.ran: list[str] = []

    def forward(self, input_ids: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        hidden = self.embeddings(input_ids)
        for index in self.order:
            self.ran.append(f"layer {index}")
            hidden = self.between(self.layers[index](hidden))
        self.ran.append("norm")
        return (self.norm(hidden),)


@pytest.fixture
def model() -> Any:
    config = SimpleNamespace(num_hidden_layers=3, model_type="ours")
    config.get_text_config = lambda: config
    return SimpleNamespace(base_model=Backbone(), config=config)


def test_layers_are_those_of_the_text_and_not_of_pictures(model: Any) -> None:
    both = nn.Module()
    both.pictures = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
    both.text = model.base_model
    both.get_decoder = lambda: both.text
    model.base_model = both
    assert decoder_layers(model) is both.text.layers


def test_a_model_that_is_its_own_backbone_is_refused(model: Any) -> None:
    model.base_model = model
    with pytest.raises(EngineError, match="ours has no part of its own without the head"):
        ModelParts(model)


def test_nothing_runs_after_the_layer_that_was_asked_for(model: Any) -> None:
    parts, ids = ModelParts(model), a_window(5)
    embeddings, call = parts.call_of(1, ids, 0)
    assert model.base_model.ran == ["layer 0", "layer 1"]
    assert torch.equal(embeddings, model.base_model.embeddings(ids))
    assert call.arguments == ()


def test_the_parts_together_are_the_model(model: Any) -> None:
    parts, ids = ModelParts(model), a_window(5)
    hidden, _ = parts.call_of(0, ids, 0)
    for layer in range(3):
        _, call = parts.call_of(layer, ids, 0)
        hidden = parts.run(layer, hidden, call)
    assert torch.equal(parts.finish(hidden, ids, 0), parts.whole(ids))


def test_the_final_norm_is_called_by_itself_once_it_was_seen(model: Any) -> None:
    parts, ids = ModelParts(model), a_window(5)
    hidden = torch.randn(1, 5, 8)
    first = parts.finish(hidden, ids, 0)
    assert model.base_model.ran == ["layer 0", "layer 1", "layer 2", "norm"]
    model.base_model.ran.clear()
    assert torch.equal(parts.finish(hidden, ids, 0), first)
    assert model.base_model.ran == []


def test_a_model_that_does_more_than_norm_finishes_by_its_own_forward(model: Any) -> None:
    doubling = Doubling(model.base_model)
    parts, ids = ModelParts(SimpleNamespace(base_model=doubling, config=model.config)), a_window(5)
    hidden = torch.randn(1, 5, 8)
    expected = 2 * model.base_model.norm(hidden)
    for _ in range(2):
        assert torch.equal(parts.finish(hidden, ids, 0), expected)


class Doubling(nn.Module):
    """Doubles what a backbone gives."""

    def __init__(self, inner: Backbone) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        return (2 * self.inner(input_ids)[0],)


def test_positions_are_those_of_the_chunk() -> None:
    parts, ids = ModelParts(tiny_model("llama").eval()), a_window(20)
    _, whole = parts.call_of(1, ids, 0)
    _, chunk = parts.call_of(1, ids[:, 12:], 12)
    for name in ("position_ids", "position_embeddings"):
        of_whole, of_chunk = whole.keywords[name], chunk.keywords[name]
        if torch.is_tensor(of_whole):
            of_whole, of_chunk = [of_whole], [of_chunk]
        for expected, found in zip(of_whole, of_chunk, strict=True):
            assert torch.equal(expected[:, 12:], found)


def test_a_model_that_changes_hidden_states_between_layers_is_refused(model: Any) -> None:
    model.base_model.between = lambda hidden: 2 * hidden
    parts = ModelParts(model)
    parts.call_of(0, a_window(5), 0)
    with pytest.raises(EngineError, match="ours does something of its own before layer 1"):
        parts.call_of(1, a_window(5), 0)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([1, 0, 2], "does something of its own before layer 1"),
        ([0, 0, 1, 2], "does something of its own before layer 0"),
        ([0, 1], "does not call its layer 2"),
    ],
)
def test_a_model_with_another_order_of_layers_is_refused(
    order: list[int], expected: str, model: Any
) -> None:
    model.base_model.order = order
    with pytest.raises(EngineError, match=expected):
        ModelParts(model).call_of(2, a_window(5), 0)


def test_a_model_that_leaves_a_layer_out_once_is_refused_then(model: Any) -> None:
    parts, ids = ModelParts(model), a_window(5)
    hidden, _ = parts.call_of(2, ids, 0)
    model.base_model.order = [0, 1]
    with pytest.raises(EngineError, match="called 2 of its 3 layers"):
        parts.finish(hidden, ids, 0)
    model.base_model.order = [0, 1, 2]
    parts.finish(hidden, ids, 0)
