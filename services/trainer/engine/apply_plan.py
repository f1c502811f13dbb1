"""Turns a freshly loaded model into what the plan says: one function, one order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from elite.planner.v1 import planner_pb2
from services.trainer.engine.adapters import add_adapters
from services.trainer.engine.compute_dtype import convert_parameters, move_to
from services.trainer.engine.decoder import decoder_layers
from services.trainer.engine.failures import BAD_MODEL, EngineError
from services.trainer.engine.key_value_heads import convert_and_measure
from services.trainer.engine.models import DTYPES
from services.trainer.engine.probe import attention_kernel_in_use, check_loss
from services.trainer.engine.quantization import quantise_layer
from services.trainer.engine.recomputation import HostInputs, recompute_in_backward
from services.trainer.engine.streaming.codecs import EXACT
from services.trainer.engine.streaming.self_check import check_streaming
from services.trainer.engine.streaming.settings import StreamingSettings
from services.trainer.engine.streaming.stores import Place
from services.trainer.engine.streaming.weights import StreamedWeights
from services.trainer.engine.transfers import Mover


@dataclass(frozen=True)
class AppliedPlan:
    """A model as the plan wants it (with adapters: a PEFT model), and what was done, in order.

    movers: parts of the model that move bytes while it runs.
    """

    model: Any
    attention_kernel: str
    steps: list[str]
    movers: list[Mover] = field(default_factory=list)


def apply_plan(
    model: Any, plan: planner_pb2.Plan, device: torch.device, seed: int,
    sample_bs: torch.Tensor | None = None,
) -> AppliedPlan:  # fmt: skip
    """Changes `model` in place into what the plan says, on `device`.

    sample_bs: (1, S) token ids of the user's, to measure what a change of the model does to it.
    Raises `EngineError` when the plan asks for something this model or device cannot do.
    """
    execution = plan.execution
    dtype = DTYPES[execution.compute_dtype]
    applied = []
    movers: list[Mover] = []

    # 0. Fewer key-value heads, before anything is made for the old ones.
    if execution.key_value_head_count:
        applied.append(convert_and_measure(model, execution.key_value_head_count, sample_bs))

    # 1. Decoder layers one by one, while linear modules are plain and still in a mapped file.
    is_nf4 = execution.base_precision == planner_pb2.BASE_PRECISION_NF4
    weights = StreamedWeights(device) if _streams_weights(execution, device) else None
    quantised = _take_layers(model, device, dtype, weights, is_nf4=is_nf4)
    if is_nf4:
        applied.append(f"nf4: {quantised} linear modules, double-quantised")

    # 2. Everything else to the device, in the compute dtype.
    move_to(model, device, dtype)
    applied.append(f"base in {_name(dtype)} on {device}")
    if weights:
        weights.install()
        movers.append(weights)
        applied.append(f"weights: {weights.description}")

    # 3. Adapters, on modules that are where they will stay.
    adapted = add_adapters(model, plan.lora, dtype, seed)
    applied.append(f"lora: rank {plan.lora.rank} on {', '.join(plan.lora.target_modules)}")

    # 4. Attention and head: prove on a few tokens that they are what the plan counts on.
    kernel = attention_kernel_in_use(model, execution.attention_kernel)
    check_loss(model, kernel)
    applied.append(f"attention: {kernel}, causal, no mask")

    # 5. What is kept for backward. Last, because it wraps the layers' forward.
    if execution.executor == planner_pb2.EXECUTOR_STREAMING:
        settings = StreamingSettings.of(plan)
        _refuse_host(Place.HOST in settings.stores.values(), device)
        kernel = check_streaming(model, settings)
        applied.append(f"streaming: {_described(settings)}, block attention on {kernel}")
    elif execution.checkpoint_policy != planner_pb2.CHECKPOINT_POLICY_NONE:
        host_inputs = HostInputs()
        movers.append(host_inputs)
        applied.append(_recompute(model, plan, device, host_inputs))
    return AppliedPlan(adapted, kernel, applied, movers)


def _take_layers(
    model: Any, device: torch.device, dtype: torch.dtype, weights: StreamedWeights | None,
    *, is_nf4: bool,
) -> int:  # fmt: skip
    """Linear modules to the device in four bits, and streamed weights to host memory.

    One layer is there before the next one comes. Returns how many modules were quantised.
    """
    quantised = 0
    for layer in decoder_layers(model):
        if is_nf4:
            quantised += quantise_layer(layer, device, dtype)
        if weights:
            convert_parameters(layer, dtype)
            weights.take(layer)
    return quantised


def _recompute(
    model: Any, plan: planner_pb2.Plan, device: torch.device, host_inputs: HostInputs
) -> str:
    execution = plan.execution
    on_host = execution.layer_inputs.placement == planner_pb2.PLACEMENT_HOST
    _refuse_host(on_host, device)
    selective = execution.checkpoint_policy == planner_pb2.CHECKPOINT_POLICY_SELECTIVE
    for layer in decoder_layers(model):
        recompute_in_backward(
            layer, keep_input_on_host=on_host, host_inputs=host_inputs,
            keep_attention_output=selective, has_dropout=plan.lora.dropout > 0,
        )  # fmt: skip
    kept = "inputs and attention outputs" if selective else "inputs"
    return f"recompute every layer, {kept} on {'host' if on_host else 'device'}"


def _streams_weights(execution: planner_pb2.Execution, device: torch.device) -> bool:
    placement = execution.weight_placement
    if placement in (planner_pb2.PLACEMENT_UNSPECIFIED, planner_pb2.PLACEMENT_DEVICE):
        return False
    executor = execution.executor
    if placement != planner_pb2.PLACEMENT_HOST or executor != planner_pb2.EXECUTOR_STREAMING:
        names = planner_pb2.Executor.Name(executor), planner_pb2.Placement.Name(placement)
        problem = "plan.execution has executor {} and weight_placement {}".format(*names)
        fix = "only EXECUTOR_STREAMING streams weights, from PLACEMENT_HOST"
        raise EngineError(BAD_MODEL, problem, fix)
    _refuse_host(True, device, "weights")
    return True


def _refuse_host(on_host: bool, device: torch.device, what: str = "activations") -> None:
    if on_host and device.type != "cuda":
        problem = f"plan.execution places {what} on HOST, but the device is the host"
        raise EngineError(BAD_MODEL, problem, "plan for this machine's profile")


def _described(settings: StreamingSettings) -> str:
    """Chunks and what is kept where, for people."""
    codec, interval = settings.layer_input_codec.name, settings.layer_input_interval
    extra = f" in {codec}" if settings.layer_input_codec is not EXACT else ""
    extra += f" of every {interval} layers" if interval > 1 else ""
    places = [f"{name} on {place.value}" for name, place in settings.stores.items()]
    places[0] += extra
    return f"chunks of {settings.chunk_tokens:,} tokens, {', '.join(places)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
