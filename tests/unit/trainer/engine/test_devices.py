"""Cores, devices and layer inputs that leave the device."""

from __future__ import annotations

import pytest
import torch

from elite.profiler.v1 import profiler_pb2
from services.trainer.engine.devices import device_name, device_of
from services.trainer.engine.failures import EngineError
from services.trainer.engine.recomputation import HostInputs, recompute_in_backward
from services.trainer.engine.transfers import Moved
from tests.fixtures.engine import LLAMA_LINEARS, a_plan, tiny_config


def test_a_cuda_plan_where_torch_sees_none_is_refused() -> None:
    plan = a_plan(tiny_config(), LLAMA_LINEARS)
    assert device_of(plan) == torch.device("cpu")
    assert device_name(torch.device("cpu")).startswith("CPU (")
    plan.device_kind = profiler_pb2.DEVICE_KIND_CUDA
    plan.device_index = 63
    with pytest.raises(EngineError, match="CUDA device 63; torch sees"):
        device_of(plan)


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.calls = 0

    def forward(self, hidden_states: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.tanh(self.linear(hidden_states)) * table


@pytest.mark.parametrize("keep_input_on_host", [False, True])
def test_a_recomputed_layer_gives_the_same_gradients(keep_input_on_host: bool) -> None:
    torch.manual_seed(0)
    plain, recomputed = Layer(), Layer()
    recomputed.load_state_dict(plain.state_dict())
    recompute_in_backward(recomputed, keep_input_on_host=keep_input_on_host)
    hidden, table = torch.randn(1, 4, 8), torch.randn(8)
    gradients = []
    for layer in (plain, recomputed):
        inputs = hidden.clone().requires_grad_()
        layer(inputs, table).square().sum().backward()
        gradients.append((inputs.grad, layer.linear.weight.grad))
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right)
    assert (plain.calls, recomputed.calls) == (1, 2)


def test_only_the_layer_input_leaves_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, host_inputs = Layer(), HostInputs()
    recompute_in_backward(layer, keep_input_on_host=True, host_inputs=host_inputs)
    moved: list[torch.Size] = []
    make = torch.empty_like

    def empty_like(tensor: torch.Tensor, **options) -> torch.Tensor:
        if options.get("device") == "cpu":
            moved.append(tensor.shape)
        return make(tensor, **options)

    monkeypatch.setattr(torch, "empty_like", empty_like)
    layer(torch.randn(1, 4, 8, requires_grad=True), torch.randn(8)).sum().backward()
    assert moved == [torch.Size([1, 4, 8])]
    size_bytes = 4 * 8 * 4
    assert host_inputs.moved == Moved(size_bytes, size_bytes)


def test_without_gradients_a_layer_runs_once() -> None:
    layer = Layer()
    recompute_in_backward(layer, keep_input_on_host=True)
    with torch.no_grad():
        layer(torch.randn(1, 4, 8), torch.randn(8))
    assert layer.calls == 1
