"""A linear module and its adapter as one operation: PEFT's results, rounded less often."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from services.trainer.engine.quantization import quantise_layer
from services.trainer.engine.streaming.adapted_linears import add_in_place
from services.trainer.engine.streaming.unread_outputs import without_outputs

INPUTS, OUTPUTS, RANK = 64, 48, 4


def adapted(
    dtype: torch.dtype = torch.float32,
    *,
    bias: bool = True,
    nf4: bool = False,
    dropout: float = 0.0,
) -> Any:
    """PEFT's module for one linear module, with an adapter that does something."""
    torch.manual_seed(3)
    holder = nn.Sequential(nn.Linear(INPUTS, OUTPUTS, bias=bias)).to(dtype)
    if nf4:
        quantise_layer(holder, torch.device("cpu"), dtype)
    config = LoraConfig(r=RANK, lora_alpha=7, target_modules=["0"], lora_dropout=dropout)
    model = get_peft_model(holder, config, autocast_adapter_dtype=False)
    module = model.base_model.model[0]
    for parameter in (module.lora_A.default.weight, module.lora_B.default.weight):
        parameter.data = torch.randn(parameter.shape).to(dtype)
    return module


def in_place(module: Any) -> Any:
    twin = copy.deepcopy(module)
    add_in_place(twin)
    return twin


def results(module: Any, inputs: torch.Tensor) -> list[torch.Tensor]:
    """Output, and gradients of inputs, A and B."""
    inputs = inputs.detach().requires_grad_()
    output = module(inputs)
    torch.manual_seed(5)
    gradient = torch.randn(output.shape).to(output.dtype)
    wanted = [inputs, module.lora_A.default.weight, module.lora_B.default.weight]
    return [output.detach(), *torch.autograd.grad(output, wanted, gradient)]


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """But for the order of fp32 sums, whose terms are as large as the largest results."""
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6 * largest)


@pytest.mark.parametrize("nf4", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 9), (2, 5), (7,), (1, 1)])
def test_it_computes_what_peft_does(nf4: bool, bias: bool, shape: tuple[int, ...]) -> None:
    module = adapted(bias=bias, nf4=nf4)
    inputs = torch.randn(*shape, INPUTS)
    for expected, found in zip(
        results(module, inputs), results(in_place(module), inputs), strict=True
    ):
        assert found.shape == expected.shape
        assert_close(found, expected)


def test_inputs_may_lie_in_any_order() -> None:
    module = adapted()
    inputs = torch.randn(INPUTS, 6, 2).permute(2, 1, 0)
    for expected, found in zip(
        results(module, inputs), results(in_place(module), inputs), strict=True
    ):
        assert_close(found, expected)


def test_sixteen_bits_are_rounded_no_more_than_by_peft() -> None:
    module = adapted(torch.bfloat16)
    inputs = torch.randn(1, 200, INPUTS, dtype=torch.bfloat16)
    exact = results(copy.deepcopy(module).double(), inputs.double())
    by_peft, found = results(module, inputs), results(in_place(module), inputs)
    for truth, peft, ours in zip(exact, by_peft, found, strict=True):
        errors = [(one.double() - truth).norm() / truth.norm() for one in (peft, ours)]
        assert errors[1] <= 1.05 * errors[0]
    output_errors = [(one[0].double() - exact[0]).norm() for one in (by_peft, found)]
    assert output_errors[1] < 0.9 * output_errors[0]


def test_inputs_that_need_no_gradient_get_none() -> None:
    module = in_place(adapted())
    module(torch.randn(1, 3, INPUTS)).sum().backward()
    assert module.lora_A.default.weight.grad is not None
    assert module.lora_B.default.weight.grad is not None
    assert module.get_base_layer().weight.grad is None


@pytest.mark.parametrize("change", ["fp32 adapters", "dropout"])
def test_other_adapters_stay_as_peft_has_them(change: str) -> None:
    dropout = 0.5 if change == "dropout" else 0.0
    module = adapted(torch.bfloat16, dropout=dropout).eval()
    if change == "fp32 adapters":
        module.lora_A.float(), module.lora_B.float()
    inputs = torch.randn(1, 3, INPUTS, dtype=torch.bfloat16)
    twin = in_place(module)
    assert ("forward" in vars(twin)) == (change != "dropout")
    for expected, found in zip(results(module, inputs), results(twin, inputs), strict=True):
        assert torch.equal(found, expected)


def test_a_second_time_changes_nothing() -> None:
    module = in_place(adapted())
    inputs = torch.randn(1, 3, INPUTS)
    first = results(module, inputs)
    add_in_place(module)
    for expected, found in zip(first, results(module, inputs), strict=True):
        assert torch.equal(found, expected)


def test_a_product_that_is_left_out_has_the_same_gradients_and_no_values() -> None:
    module = in_place(adapted())
    inputs = torch.randn(1, 3, INPUTS)
    expected = results(module, inputs)
    with without_outputs([module.get_base_layer()]):
        found = results(module, inputs)
    assert found[0].isnan().all()
    for one, other in zip(expected[1:], found[1:], strict=True):
        assert torch.equal(one, other)


def test_nothing_as_wide_as_the_output_is_kept() -> None:
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    module, inputs = in_place(adapted()), torch.randn(1, 33, INPUTS, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(inputs)
    parameters = {parameter.data_ptr() for parameter in module.parameters()}
    of_step = [tensor for tensor in kept if tensor.data_ptr() not in parameters]
    assert sorted(tensor.shape[-1] for tensor in of_step) == [RANK, INPUTS]
