"""Section `speed-TOKENS`: streaming beside stock transformers, PEFT and gradient checkpointing.

As `python -m bench.speed`, on the GPU, in bf16, the model at full depth. Both share one process and
its allocator, under the engine's settings of it; peaks are each one's own. Rounds of one step each,
the order alternating. Where stock runs out of memory streaming is measured alone.
"""

from __future__ import annotations

import gc
import statistics
from typing import Any

import torch

from bench import gpu_device, speed
from bench.gpu_models import StockOnDevice, StreamingOnDevice
from bench.gpu_plans import operations, rates_from, streaming_set
from bench.gpu_sections import last_line
from bench.gpu_settings import Settings
from bench.speed_report import Measured
from bench.speed_steps import Contender, free_bytes, time_step, weigh
from bench.speed_worker import STOCK, STREAMING
from elite.planner.v1 import planner_pb2
from services.planner.ladder import Tier
from services.planner.machine import ComputeDtype, DeviceKind

_ROUNDS = {False: 3, True: 2}


def measure(settings: Settings, number: int) -> dict[str, Any]:
    """Both contenders at one length. Raises `Disagreement` where their losses differ."""
    device = gpu_device.open_device()
    subject = speed.Subject.of(settings.subject_name())
    setting = speed.Setting(
        ComputeDtype.BFLOAT16, DeviceKind(device.type), free_bytes(device), _ROUNDS[settings.fast],
        kernel=gpu_device.kernel_for(device, settings),
        rates=rates_from(settings.so_far) or speed.UNMEASURED,
    )  # fmt: skip
    plan = speed.plan_for(subject, number, setting)
    found = _measured(subject, plan, device, setting.rounds)
    tier = Tier(1, int(plan.context_tokens), int(plan.target_tokens), int(plan.lora.rank))
    counted = operations(subject.shape, tier, streaming_set(subject.shape, setting.machine))
    document: dict[str, Any] = {
        "model": subject.name, "layers": subject.layers, "tokens": number,
        "target_tokens": tier.target_tokens, "dtype": setting.dtype.value,
        "chunk_tokens": int(plan.execution.streaming.chunk_tokens),
        "attention_kernel": plan.execution.attention_kernel,
        "model_flops": counted.model,
    }  # fmt: skip
    for name, one in found.items():
        document[name] = _row(one, number) if isinstance(one, Measured) else {"error": one}
        if isinstance(one, Measured):
            seconds = document[name]["step_seconds"]
            used = counted.utilisation(seconds, settings.matmul_peak)
            document[name]["model_flops_utilisation"] = used["model_flops_utilisation"]
    return document | _ratios(found)


def _measured(
    subject: speed.Subject, plan: planner_pb2.Plan, device: torch.device, rounds: int
) -> dict[str, Measured | str]:
    """What each took; the error of one that ran out of memory."""
    found: dict[str, Measured | str] = {}
    contenders: dict[str, Contender] = {}
    for name, make in ((STOCK, StockOnDevice), (STREAMING, StreamingOnDevice)):
        try:
            contenders[name] = make(subject.config, plan, device)
            found[name] = Measured(name, weigh(contenders[name], plan))
        except torch.OutOfMemoryError as error:
            found[name] = last_line(error)
            contenders.pop(name, None)
        gc.collect()  # after an error its frames hold what was on its way
    for number in range(rounds):
        for name in list(contenders) if number % 2 == 0 else reversed(list(contenders)):
            one = found[name]
            assert isinstance(one, Measured)
            one.timed.append(time_step(contenders[name], plan))
        _require_agreement(subject, plan, found)
    return found


def _require_agreement(
    subject: speed.Subject, plan: planner_pb2.Plan, found: dict[str, Measured | str]
) -> None:
    losses = {name: one.timed[-1].loss for name, one in found.items() if isinstance(one, Measured)}
    if len(losses) == len(found):
        case = f"{subject.name} at {plan.context_tokens + plan.target_tokens:,} tokens"
        speed.require_agreement(case, losses, speed.TOLERANCES[ComputeDtype.BFLOAT16])


def _row(one: Measured, tokens: int) -> dict[str, Any]:
    """spread: slowest less fastest step, over the median. peak_bytes: weights included."""
    median = statistics.median(one.seconds)
    return {
        "step_seconds": median, "samples": one.seconds,
        "spread": (max(one.seconds) - min(one.seconds)) / median,
        "tokens_per_second": tokens / median, "peak_bytes": one.weighed.peak_bytes,
        "static_bytes": one.weighed.static_bytes, "loss": one.weighed.loss,
    }  # fmt: skip


def _ratios(found: dict[str, Measured | str]) -> dict[str, float | None]:
    """Streaming over stock: the median of the rounds' ratios; null where one did not fit."""
    stock, streaming = found[STOCK], found[STREAMING]
    if isinstance(stock, str) or isinstance(streaming, str):
        return {"time_over_stock": None, "memory_over_stock": None}
    ratios = [b / a for a, b in zip(stock.seconds, streaming.seconds, strict=True)]
    peaks = stock.weighed.peak_bytes, streaming.weighed.peak_bytes
    return {"time_over_stock": statistics.median(ratios), "memory_over_stock": peaks[1] / peaks[0]}
