"""What a training step really takes: the engine's own step, with every storage tracked.

Under fake tensors the same step runs for any model and any length in seconds and without memory:
shapes, dtypes, lifetimes and so the peak are those of the real step, to the byte
(tests/unit/bench/test_oracle.py). Workspaces inside a kernel are invisible to both.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionMaskInterface, AutoModelForCausalLM, PretrainedConfig

from elite.planner.v1 import planner_pb2
from services.trainer.engine.adapters import add_adapters, trainable_parameters
from services.trainer.engine.attention import ATTENTION_NAME, register_attention
from services.trainer.engine.decoder import decoder_layers
from services.trainer.engine.executors import make_executor
from services.trainer.engine.key_value_heads import convert_key_value_heads
from services.trainer.engine.memory_tracking import StorageTracker
from services.trainer.engine.models import DTYPES
from services.trainer.engine.recomputation import recompute_in_backward
from services.trainer.engine.streaming.weights import stream_weights


@dataclass(frozen=True, slots=True)
class Measurement:
    """Bytes on the device: weights and adapters, and everything at the highest moment of a step.

    host_bytes: what waits in host memory beside the device: stores and streamed weights.
    pinned_bytes: the same as torch pins it, by powers of two.
    """

    static_bytes: int
    peak_bytes: int
    host_bytes: int = 0
    pinned_bytes: int = 0


def measure_step(
    config: PretrainedConfig, plan: planner_pb2.Plan, *, fake: bool, threads: int = 1
) -> Measurement:
    """Peak of forward, loss and backward over one window, as the plan sets the engine up.

    The optimizer's states are not in it: their bytes are known (`optimizer-states`). The base
    weights are in the compute dtype. threads: among which a CPU's attention is shared out, whatever
    this machine has; a step that stands for a card's has one.
    """
    dtype = DTYPES[plan.execution.compute_dtype]
    register_attention()
    if fake:  # transformers cannot tell a fake window from packed sequences and would want a mask
        AttentionMaskInterface.register(ATTENTION_NAME, lambda **_: None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=ATTENTION_NAME
        ).requires_grad_(False)
        if plan.execution.key_value_head_count:
            convert_key_value_heads(model, plan.execution.key_value_head_count)
        adapted = add_adapters(model, plan.lora, dtype, seed=0)
    tracker = StorageTracker()
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else contextlib.nullcontext()
    with patch.object(torch, "get_num_threads", return_value=threads), mode:
        with tracker:
            _materialise(adapted)
            if plan.execution.weight_placement == planner_pb2.PLACEMENT_HOST:
                stream_weights(model, torch.device("cpu"))
        static_bytes = tracker.current_bytes
        tracker.reset_peak()
        is_resident = plan.execution.executor == planner_pb2.EXECUTOR_RESIDENT
        # A streaming step leaves the token ids where they came from, others move them over.
        with tracker if is_resident else contextlib.nullcontext():
            tokens = plan.context_tokens + plan.target_tokens
            window_bs = torch.zeros((1, tokens), dtype=torch.int64)
        with tracker:
            if is_resident:
                _keep_for_backward(model, plan.execution.checkpoint_policy)
            _step(model, plan, window_bs)
    register_attention()
    return Measurement(
        static_bytes, tracker.peak_bytes, tracker.host_peak_bytes, tracker.pinned_peak_bytes
    )


def _keep_for_backward(model: Any, policy: planner_pb2.CheckpointPolicy) -> None:
    """What `apply_plan` does for the resident executor."""
    if policy != planner_pb2.CHECKPOINT_POLICY_NONE:
        selective = policy == planner_pb2.CHECKPOINT_POLICY_SELECTIVE
        for layer in decoder_layers(model):
            recompute_in_backward(layer, keep_input_on_host=False, keep_attention_output=selective)


def _materialise(model: torch.nn.Module) -> None:
    """Replaces meta parameters and buffers by zeros on the CPU; tied weights stay tied."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    tensor = torch.zeros(parameter.shape, dtype=parameter.dtype, device="cpu")
                    made[id(parameter)] = torch.nn.Parameter(tensor, parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype, device="cpu")


def _step(model: Any, plan: planner_pb2.Plan, window_bs: torch.Tensor) -> None:
    """One window through the executor; `.step` itself would read the loss, which a fake has not."""
    executor = make_executor(model, plan)
    executor.backward(window_bs, 1.0)
    for parameter in trainable_parameters(model):
        parameter.grad = None
