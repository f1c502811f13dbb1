"""Section `gradients`: the adapters' gradients of stock and streaming in bf16, against fp32.

The reference is stock transformers and PEFT in fp32, with the weights, adapters and tokens that the
others have in bf16. Rounding makes stock's own gradients differ from it; streaming's may differ no
more than half as much again. An error is the norm of the difference over the reference's norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bench import gpu_device, speed
from bench.gpu_models import StockOnDevice, StreamingOnDevice, random_window
from bench.gpu_settings import NO_CUDA, Settings
from bench.speed_steps import Contender, free_bytes
from elite.planner.v1 import planner_pb2
from services.planner.machine import ComputeDtype, DeviceKind
from services.trainer.engine.adapters import trainable_parameters
from services.trainer.engine.failures import EngineError

_LAYERS = {False: 4, True: 2}
_TOKENS = {False: 4096, True: 96}
# Several chunks, the last of them shorter.
_CHUNK_TOKENS = {False: 768, True: 20}
_HOST = planner_pb2.Store(placement=planner_pb2.PLACEMENT_HOST, codec=planner_pb2.CODEC_EXACT)

Gradients = Sequence[torch.Tensor]


def measure(settings: Settings, number: int) -> dict[str, Any]:
    """Errors of stock and of every variant of streaming, and of streaming in fp32."""
    del number
    device = gpu_device.open_device()
    subject = speed.Subject.of(settings.subject_name(_LAYERS[settings.fast]))
    plan = _plan(subject, ComputeDtype.BFLOAT16, device, settings.fast)
    reference = _gradients(StockOnDevice(subject.config, plan, device, float32=True), plan)
    found: dict[str, Any] = {
        "model": subject.name, "layers": subject.layers, "tokens": _TOKENS[settings.fast],
        "chunk_tokens": int(plan.execution.streaming.chunk_tokens),
    }  # fmt: skip
    stock = _compared(_gradients(StockOnDevice(subject.config, plan, device), plan), reference)
    found |= {"stock": stock, "streaming": []}
    for name, change in VARIANTS.items():
        found["streaming"].append(
            {"variant": name} | _variant(subject, plan, change, device, reference, stock)
        )
        settings.note(found)
    exact = _plan(subject, ComputeDtype.FLOAT32, device, settings.fast)
    streaming = StreamingOnDevice(subject.config, exact, device, made_in=torch.bfloat16)
    return found | {"streaming_float32": _compared(_gradients(streaming, exact), reference)}


def _plan(
    subject: speed.Subject, dtype: ComputeDtype, device: torch.device, fast: bool
) -> planner_pb2.Plan:
    """Streaming with kept attention outputs, everything on the device."""
    setting = speed.Setting(
        dtype, DeviceKind(device.type), free_bytes(device), 1, _CHUNK_TOKENS[fast]
    )
    return speed.plan_for(subject, _TOKENS[fast], setting)


def _variant(
    subject: speed.Subject, plan: planner_pb2.Plan,
    change: Callable[[planner_pb2.Execution], None], device: torch.device, reference: Gradients,
    stock: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """Its error, also over stock's, or why it cannot run here."""
    changed = planner_pb2.Plan()
    changed.CopyFrom(plan)
    change(changed.execution)
    if _uses_host(changed.execution) and device.type != "cuda":
        return {"error_over_stock": None, "reason": NO_CUDA}
    try:
        gradients = _gradients(StreamingOnDevice(subject.config, changed, device), changed)
    except (EngineError, RuntimeError) as error:
        return {"error_over_stock": None, "reason": str(error).strip().partition("\n")[0]}
    found = _compared(gradients, reference)
    return found | {"error_over_stock": found["relative_error"] / stock["relative_error"]}


def _gradients(subject: Contender, plan: planner_pb2.Plan) -> Gradients:
    """Of all adapters in order, fp32, on the host."""
    subject.prepare(plan)
    subject.step(random_window(plan))
    found = []
    for parameter in trainable_parameters(subject.model):
        assert parameter.grad is not None, "an adapter without a gradient"
        found.append(parameter.grad.float().cpu())
    subject.release()
    return found


def _compared(gradients: Gradients, reference: Gradients) -> dict[str, float]:
    """Over all adapters together, and the worst of them."""
    whole, expected = (torch.cat([part.flatten() for part in all_]) for all_ in
                       (gradients, reference))  # fmt: skip
    errors = [_error(*pair) for pair in zip(gradients, reference, strict=True)]
    cosine = torch.nn.functional.cosine_similarity(whole, expected, dim=0)
    return {
        "relative_error": _error(whole, expected),
        "worst_relative_error": max(errors),
        "cosine": float(cosine),
    }


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _uses_host(execution: planner_pb2.Execution) -> bool:
    places = (execution.layer_inputs.placement, execution.weight_placement)
    return planner_pb2.PLACEMENT_HOST in places


def _nothing(execution: planner_pb2.Execution) -> None:
    del execution


def _attention_again(execution: planner_pb2.Execution) -> None:
    execution.checkpoint_policy = planner_pb2.CHECKPOINT_POLICY_EVERY_LAYER
    execution.streaming.ClearField("attention_outputs")
    execution.streaming.ClearField("kept_keys")


def _every_second_layer(execution: planner_pb2.Execution) -> None:
    execution.layer_input_interval = 2


def _stores_on_host(execution: planner_pb2.Execution) -> None:
    execution.layer_inputs.CopyFrom(_HOST)
    for store in ("hidden_gradients", "attention_outputs", "kept_keys"):
        getattr(execution.streaming, store).CopyFrom(_HOST)


def _keys_on_host(execution: planner_pb2.Execution) -> None:
    _stores_on_host(execution)
    execution.streaming.key_values.CopyFrom(_HOST)
    execution.streaming.ClearField("kept_keys")


def _weights_on_host(execution: planner_pb2.Execution) -> None:
    execution.weight_placement = planner_pb2.PLACEMENT_HOST


def _cudnn(execution: planner_pb2.Execution) -> None:
    execution.attention_kernel = "sdpa_cudnn"


def _efficient(execution: planner_pb2.Execution) -> None:
    execution.attention_kernel = "sdpa_efficient"


# What of the plan is other than "everything on the device, attention outputs kept".
VARIANTS: Mapping[str, Callable[[planner_pb2.Execution], None]] = {
    "stores on the device": _nothing,
    "attention again in backward": _attention_again,
    "inputs of every second layer": _every_second_layer,
    "stores on the host": _stores_on_host,
    "stores and keys on the host": _keys_on_host,
    "weights on the host": _weights_on_host,
    "sdpa_cudnn": _cudnn,
    "sdpa_efficient": _efficient,
}
