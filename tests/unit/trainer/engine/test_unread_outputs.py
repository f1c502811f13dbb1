"""Which products a recompute may leave out, and that gradients are the same to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from services.planner.models import ModelShape, catalogue, model_from_config
from services.planner.tables import table
from services.trainer.engine.executors.streaming import StreamingExecutor
from services.trainer.engine.quantization import quantise_layer
from services.trainer.engine.streaming.anatomy import examine
from services.trainer.engine.streaming.attention_calls import (
    STREAMING_ATTENTION,
    register_streaming_attention,
)
from services.trainer.engine.streaming.model_parts import ModelParts
from services.trainer.engine.streaming.settings import StreamingSettings
from services.trainer.engine.streaming.stores import Place
from services.trainer.engine.streaming.unread_outputs import unread_linears, without_outputs
from tests.fixtures.adapted import a_window, adapted_model, gradients_of

Rule = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ARCHITECTURES = {model.architecture.model_type: model for model in catalogue().values()}


class Layer(nn.Module):
    """A frozen product, and what becomes of it."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4).requires_grad_(False)
        self._rule = rule

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._rule(hidden, self.linear(hidden))


def is_unread(rule: Rule) -> bool:
    layer = Layer(rule)
    found = unread_linears(layer, lambda: layer(torch.ones(1, 2, 4)))
    assert found in ([], [layer.linear])
    return bool(found)


@pytest.mark.parametrize("rule", [
    lambda hidden, output: hidden + output,
    lambda hidden, output: output.add_(hidden),
    lambda hidden, output: hidden + 0.5 * output / 3,
    lambda hidden, output: (hidden.view(2, 4) + output.transpose(1, 2).mT.reshape(2, 4))[None],
    lambda hidden, output: hidden + nn.functional.dropout(output, 0.3, training=False),
    lambda hidden, output: hidden + output.to(torch.float64).to(torch.float32),
])  # fmt: skip
def test_sums_read_nothing(rule: Rule) -> None:
    assert is_unread(rule)


@pytest.mark.parametrize("rule", [
    lambda hidden, output: hidden * output,
    lambda hidden, output: hidden + nn.functional.silu(output),
    lambda hidden, output: nn.functional.layer_norm(hidden + output, (4,)),
    lambda hidden, output: torch.where(output > 0, hidden, -hidden),
    lambda hidden, output: hidden + output / output.mean(),
    lambda hidden, output: hidden + output[..., :1].exp(),
    lambda hidden, output: hidden.clone().copy_(output),
    lambda hidden, output: hidden if output[0, 0, 0] > 0 else -hidden,
])  # fmt: skip
def test_everything_else_reads(rule: Rule) -> None:
    assert not is_unread(rule)


def test_a_module_that_did_not_run_is_not_left_out() -> None:
    layer = Layer(lambda hidden, output: hidden + output)
    assert unread_linears(layer, lambda: None) == []


def test_a_trained_module_keeps_its_product() -> None:
    layer = Layer(lambda hidden, output: hidden + output)
    layer.linear.requires_grad_(True)
    assert unread_linears(layer, lambda: layer(torch.ones(1, 2, 4))) == []


def test_without_outputs_only_gradients_are_left() -> None:
    linear = nn.Linear(3, 5).requires_grad_(False)
    inputs = torch.randn(2, 7, 3, requires_grad=True)
    gradient = torch.randn(2, 7, 5)
    expected = torch.autograd.grad(linear(inputs), inputs, gradient)[0]
    with without_outputs([linear]):
        nothing = linear(inputs)
    assert nothing.shape == (2, 7, 5)
    assert nothing.isnan().all()
    assert torch.equal(torch.autograd.grad(nothing, inputs, gradient)[0], expected)
    assert torch.isfinite(linear(inputs)).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_planner_and_engine_leave_out_the_same(architecture: str) -> None:
    rows = {row["id"]: row["config"] for row in table("models")["models"]}
    config = rows[ARCHITECTURES[architecture].model_id] | {"num_hidden_layers": 2}
    config.pop("layer_types", None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    model.eval().requires_grad_(False)
    register_streaming_attention()
    model.set_attn_implementation(STREAMING_ATTENTION)
    parts = ModelParts(model)
    found = examine(parts, torch.device("meta")).unread
    shape: ModelShape = model_from_config(json.dumps(config))
    expected = {linear.name for linear in shape.unread_linears}
    for layer, linears in zip(parts.layers, found, strict=True):
        names = {name.rpartition(".")[2] for name, module in layer.named_modules()
                 if module in linears}  # fmt: skip
        assert names == expected


def gradients(family: str, *, skips: bool, nf4: bool = False) -> dict[str, torch.Tensor]:
    model, parameters = adapted_model(family, num_hidden_layers=3)
    if nf4:
        model, parameters = quantised(model)
    settings = StreamingSettings(66, 16, 10, loss_tile_rows=5, attention_outputs=Place.DEVICE)
    executor = StreamingExecutor(model, settings)
    anatomy: Any = executor._anatomy
    assert all(anatomy.unread)
    if not skips:
        for linears in anatomy.unread:
            linears.clear()
    executor.step(a_window(66), 1.0)
    return gradients_of(parameters)


def quantised(model: Any) -> tuple[Any, dict[str, nn.Parameter]]:
    """The same with its base in four bits; adapters stay as they are."""
    for layer in ModelParts(model).layers:
        for module in list(layer.modules()):
            if hasattr(module, "base_layer"):
                holder = nn.Module()
                holder.base_layer = module.base_layer
                quantise_layer(holder, torch.device("cpu"), torch.float32)
                module.base_layer = holder.base_layer
    return model, {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("family", "nf4"), [
    ("llama", False), ("phi", False), ("granite", False), ("gpt_neox", False), ("phi", True),
])  # fmt: skip
def test_gradients_are_those_of_whole_products_to_the_bit(family: str, nf4: bool) -> None:
    found, expected = (gradients(family, skips=skips, nf4=nf4) for skips in (True, False))
    assert found.keys() == expected.keys()
    assert any(gradient.any() for gradient in found.values())
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), name
