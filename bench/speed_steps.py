"""One training step by stock libraries and by the streaming executor, timed and weighed.

Both have the same random weights, adapters, tokens and targets, and start from no gradients. The
optimizer's update is left out: it is the same for both.

Shapes: B batch (1), S tokens of the window.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench.speed_worker import Timed, Weighed
from elite.planner.v1 import planner_pb2
from services.common.host_memory import read_memory
from services.trainer.engine.adapters import add_adapters, trainable_parameters
from services.trainer.engine.apply_plan import apply_plan
from services.trainer.engine.attention import ATTENTION_NAME
from services.trainer.engine.executors import Executor, make_executor
from services.trainer.engine.memory_tracking import memory_tracker
from services.trainer.engine.models import DTYPES

_SEED = 0
# PEFT starts B at zero, and then no loss would show what adapters do.
_ADAPTER_DEVIATION = 0.02
IGNORED = -100  # transformers' label for tokens that are no targets


class Contender(Protocol):
    """A model with its adapters, and a way to train it."""

    device: torch.device
    model: Any

    def prepare(self, plan: planner_pb2.Plan) -> None:
        """Allocates what lives from step to step, for the plan's window."""
        ...

    def step(self, window_bs: torch.Tensor) -> float:
        """Loss of the window's targets; leaves its gradient in the adapters' `.grad`."""
        ...

    def release(self) -> None:
        """Frees what `prepare` allocated."""
        ...


class Stock:
    """transformers, PEFT and gradient checkpointing of every layer, as their manuals have it.

    Plain `labels`: the model computes the logits of every token, as it does for users. Adapters
    are in the compute dtype, where PEFT by itself would make 16-bit ones fp32.
    """

    def __init__(
        self, config: Mapping[str, Any], plan: planner_pb2.Plan, device: torch.device
    ) -> None:
        self.device, self._target_tokens = device, 0
        dtype = DTYPES[plan.execution.compute_dtype]
        model = _random_model(config, dtype, "sdpa").to(device)
        self.model = add_adapters(model, plan.lora, dtype, _SEED).train()
        self.model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        self.model.enable_input_require_grads()
        _fill_adapters(self.model)

    def prepare(self, plan: planner_pb2.Plan) -> None:
        """Nothing lives from step to step."""
        self._target_tokens = int(plan.target_tokens)

    def step(self, window_bs: torch.Tensor) -> float:
        """Loss of the window's targets; leaves its gradient in the adapters' `.grad`."""
        token_ids_bs = window_bs.to(self.device)
        labels_bs = token_ids_bs.clone()
        labels_bs[:, : -self._target_tokens] = IGNORED
        loss = self.model(input_ids=token_ids_bs, labels=labels_bs).loss
        loss.backward()
        return float(loss.detach())

    def release(self) -> None:
        """Nothing was allocated."""


class Streaming:
    """This project's streaming executor, as the plan sets it up."""

    def __init__(
        self, config: Mapping[str, Any], plan: planner_pb2.Plan, device: torch.device
    ) -> None:
        self.device = device
        dtype = DTYPES[plan.execution.compute_dtype]
        self.model = _random_model(config, dtype, ATTENTION_NAME)
        apply_plan(self.model, plan, device, _SEED)
        _fill_adapters(self.model)
        self._executor: Executor | None = None

    def prepare(self, plan: planner_pb2.Plan) -> None:
        """Makes the executor with its stores."""
        self._executor = make_executor(self.model, plan)

    def step(self, window_bs: torch.Tensor) -> float:
        """Loss of the window's targets; leaves its gradient in the adapters' `.grad`."""
        assert self._executor is not None, "prepare comes first"
        return self._executor.step(window_bs, 1.0)

    def release(self) -> None:
        """Lets the executor go."""
        self._executor = None


def weigh(subject: Contender, plan: planner_pb2.Plan) -> Weighed:
    """Prepares for the plan and runs a step with its memory tracked. The tracker takes time."""
    window_bs = random_window(plan)
    static_bytes = _static_bytes(subject.model)
    tracker = memory_tracker(subject.device)
    with tracker:
        before_bytes = tracker.current_bytes
        tracker.reset_peak()
        subject.prepare(plan)
        loss = subject.step(window_bs)
    _forget_gradients(subject.model)
    return Weighed(loss, static_bytes, static_bytes + tracker.peak_bytes - before_bytes)


def time_step(subject: Contender, plan: planner_pb2.Plan) -> Timed:
    """One step of a contender that is prepared for the plan."""
    window_bs = random_window(plan)
    started, worked = time.perf_counter(), time.process_time()
    loss = subject.step(window_bs)
    if subject.device.type == "cuda":
        torch.cuda.synchronize(subject.device)
    seconds = time.perf_counter() - started
    worked = time.process_time() - worked
    _forget_gradients(subject.model)
    return Timed(loss, seconds, worked / (seconds * torch.get_num_threads()))


def find_device() -> torch.device:
    """The CUDA device where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free_bytes(device: torch.device) -> int:
    """Memory that tensors may still take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return read_memory().available_bytes


def random_window(plan: planner_pb2.Plan) -> torch.Tensor:
    """Token ids on the host, (1, S)."""
    generator = torch.Generator().manual_seed(_SEED)
    tokens = int(plan.context_tokens + plan.target_tokens)
    return torch.randint(0, plan.model.vocabulary_size, (1, tokens), generator=generator)


def _random_model(config: Mapping[str, Any], dtype: torch.dtype, attention: str) -> Any:
    torch.manual_seed(_SEED)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), dtype=dtype, attn_implementation=attention
    )
    return model.requires_grad_(False)


@torch.no_grad()
def _fill_adapters(model: Any) -> None:
    """Random adapters, the same for both contenders and on every device."""
    generator = torch.Generator().manual_seed(_SEED)
    for parameter in trainable_parameters(model):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * _ADAPTER_DEVIATION)


def _static_bytes(model: Any) -> int:
    """Bytes of parameters and buffers; tied ones count once."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def _forget_gradients(model: Any) -> None:
    for parameter in trainable_parameters(model):
        parameter.grad = None
