"""Checkpointing: keep a decoder layer's input, recompute the layer in backward.

Chen et al. 2016, https://arxiv.org/abs/1604.06174. Shapes: B batch, S tokens, E hidden.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from services.trainer.engine.transfers import Moved

_ATEN = torch.ops.aten
# What selective recomputation keeps: output and log-sum-exp of every fused kernel there is.
_ATTENTION_OPERATIONS = frozenset(
    {
        _ATEN._scaled_dot_product_flash_attention.default,
        _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
        _ATEN._scaled_dot_product_efficient_attention.default,
        _ATEN._scaled_dot_product_cudnn_attention.default,
    }
)


class HostInputs:
    """Counts layer inputs that go to host memory in forward, and come back in backward."""

    # Forward's thread adds to the one, autograd's to the other.
    saved_bytes = 0
    fetched_bytes = 0

    @property
    def moved(self) -> Moved:
        """So far."""
        return Moved(self.fetched_bytes, self.saved_bytes)


def recompute_in_backward(
    layer: nn.Module,
    *,
    keep_input_on_host: bool,
    host_inputs: HostInputs | None = None,
    keep_attention_output: bool = False,
    has_dropout: bool = False,
) -> None:
    """Makes `layer` save nothing but its input, (B, S, E), on its device or in host memory.

    host_inputs: counts those in host memory.
    keep_attention_output: attention's output and log-sum-exp are saved too, on the device, so that
    the recompute leaves attention out (selective checkpointing, https://arxiv.org/abs/2205.05198).
    """
    forward: Callable[..., Any] = layer.forward
    counts = host_inputs or HostInputs()
    contexts: dict[str, Any] = {"context_fn": _keeping_attention} if keep_attention_output else {}

    @functools.wraps(forward)
    def recomputed(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's output, (B, S, E), with nothing else saved for backward."""
        if not torch.is_grad_enabled():
            return forward(hidden_states, *args, **kwargs)
        # Without dropout nothing in the model is random: there is no generator state to keep.
        run = functools.partial(
            checkpoint, forward, hidden_states, *args,
            use_reentrant=False, preserve_rng_state=has_dropout, **contexts, **kwargs,
        )  # fmt: skip
        if not keep_input_on_host:
            return run()
        with _saved_on_host(hidden_states, counts):
            return run()

    layer.forward = recomputed


def _keeping_attention() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(_: Any, operation: Any, *_arguments: Any, **_options: Any) -> CheckpointPolicy:
    if operation in _ATTENTION_OPERATIONS:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _saved_on_host(hidden_states: torch.Tensor, counts: HostInputs) -> saved_tensors_hooks:
    """Hooks that move one tensor to pinned host memory when autograd saves it, and back.

    Other tensors of the layer's arguments (rotary tables) are shared by all layers and stay.
    Copies run in the order of the device's stream, so that neither side needs to wait.
    """
    device, pointer = hidden_states.device, hidden_states.data_ptr()

    def pack(tensor: torch.Tensor) -> tuple[bool, torch.Tensor]:
        """Whether the tensor was moved, and where it is now."""
        if tensor.data_ptr() != pointer or tensor.shape != hidden_states_shape:
            return False, tensor
        on_host = torch.empty_like(tensor, device="cpu", pin_memory=device.type == "cuda")
        on_host.copy_(tensor, non_blocking=True)
        counts.saved_bytes += tensor.nbytes
        return True, on_host

    def unpack(packed: tuple[bool, torch.Tensor]) -> torch.Tensor:
        """The tensor, on the device."""
        is_moved, tensor = packed
        if not is_moved:
            return tensor
        counts.fetched_bytes += tensor.nbytes
        return tensor.to(device, non_blocking=True)

    hidden_states_shape = hidden_states.shape
    return saved_tensors_hooks(pack, unpack)
