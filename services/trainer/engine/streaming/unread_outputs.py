"""Products that a layer's recompute leaves out, because nothing reads what they return.

What a chunk's layer returns is known when backward runs the layer again; wanted is only what
autograd keeps. A frozen linear module that does nothing but add to the residual stream keeps
nothing: its gradient takes its weight alone. In layers that normalise before attention and MLP that
is the MLP's last module, a fifth of the layer's weights; where attention and MLP run side by side,
attention's last module too.

Shapes: I inputs and O outputs of a linear module, any dimensions before them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from services.trainer.engine.decoder import linear_modules
from services.trainer.engine.quantization import dequantised

_ATEN = torch.ops.aten
# Operations whose gradient does not depend on values; views are known by their schema.
_PASSES_ON = frozenset({_ATEN.add, _ATEN.add_, _ATEN.clone, _ATEN._to_copy, _ATEN._unsafe_view})
# The same, when all but one of their arguments are numbers.
_SCALES = frozenset({_ATEN.mul, _ATEN.mul_, _ATEN.div, _ATEN.div_})
# What a tensor is and not what is in it: fake tensors ask as operations do.
_PROPERTIES = "prim"
_FORWARD = "forward"


def unread_linears(layer: nn.Module, run: Callable[[], object]) -> list[nn.Linear]:
    """Frozen linear modules of `layer` whose outputs only reach the layer's output, and as sums.

    run: runs the layer. Needs no values: fake tensors will do.
    """
    readers = _Readers()
    with ExitStack() as hooks, torch.no_grad(), readers:
        for _, _, linear in linear_modules(layer):
            if not linear.weight.requires_grad:
                hooks.callback(linear.register_forward_hook(readers.watch).remove)
        run()
    return readers.unread


class _Readers(TorchDispatchMode):
    """Follows the outputs of modules through what is computed from them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watched: list[nn.Linear] = []
        self._read: set[nn.Linear] = set()
        # Whose outputs a storage holds, alone or in sums. Storages are kept: addresses stay theirs.
        self._held: dict[int, tuple[torch.UntypedStorage, set[nn.Linear]]] = {}

    @property
    def unread(self) -> list[nn.Linear]:
        """Modules that ran and whose outputs nothing read."""
        return [linear for linear in self._watched if linear not in self._read]

    def watch(self, linear: nn.Linear, _: Any, output: Any) -> None:
        """A forward hook. What a router makes, several tensors, is read."""
        if torch.is_tensor(output):
            self._watched.append(linear)
            self._hold(output, {linear})

    def __torch_dispatch__(
        self, function: Any, _types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        """Runs the operation, and notes what it read or passed on."""
        keywords = keywords or {}
        result = function(*arguments, **keywords)
        given = [leaf for leaf in tree_leaves((arguments, keywords)) if torch.is_tensor(leaf)]
        outputs = set().union(*(self._outputs_in(tensor) for tensor in given))
        if outputs and not function.is_view and function.namespace != _PROPERTIES:
            packet = function.overloadpacket
            read = set()
            if packet is _ATEN.addmm_:  # adds to its first argument, which it does not read
                read = set().union(*(self._outputs_in(tensor) for tensor in given[1:]))
            elif packet not in _PASSES_ON and not (packet in _SCALES and len(given) == 1):
                read = outputs
            self._read |= read
            if outputs - read:
                self._hold(result, outputs - read)
        return result

    def _hold(self, tensor: torch.Tensor, outputs: set[nn.Linear]) -> None:
        storage = tensor.untyped_storage()
        self._held[storage._cdata] = (storage, outputs | self._outputs_in(tensor))

    def _outputs_in(self, tensor: torch.Tensor) -> set[nn.Linear]:
        held = self._held.get(tensor.untyped_storage()._cdata)
        return held[1] if held else set()


@contextmanager
def without_outputs(linears: list[nn.Linear]) -> Iterator[None]:
    """Inside, these modules have gradients and no values: they return NaN, so that no error hides.

    The gradients are those of the whole product, to the bit.
    """
    for linear in linears:
        vars(linear)[_FORWARD] = _GradientOnly(linear)
    try:
        yield
    finally:
        for linear in linears:
            del vars(linear)[_FORWARD]


def is_left_out(linear: nn.Linear) -> bool:
    """Whether the module has no values now."""
    return isinstance(vars(linear).get(_FORWARD), _GradientOnly)


def without_values(inputs: torch.Tensor, outputs: int) -> torch.Tensor:
    """(..., I) to (..., O) of NaN, in no memory."""
    return inputs.new_full((), math.nan).expand(*inputs.shape[:-1], outputs)


class _GradientOnly:
    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., I) to (..., O)."""
        apply: Callable[..., torch.Tensor] = _WeightOnly.apply
        return apply(inputs, self._linear.weight, self._linear.out_features)


class _WeightOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, outputs: int) -> torch.Tensor:
        """NaN."""
        ctx.save_for_backward(weight)
        return without_values(inputs, outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradient of the inputs."""
        (weight,) = ctx.saved_tensors
        return gradients[0] @ dequantised(weight, gradients[0].dtype), None, None
