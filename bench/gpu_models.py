"""Models of random weights made on the device, and ways to step them.

Shapes: B batch (1), S tokens of the window, C tokens of a chunk, G KV heads, D head dim.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench.gpu_extrapolation import Share
from bench.speed_steps import Stock, Streaming
from elite.planner.v1 import planner_pb2
from services.profiler.probes.compute import synchronise
from services.trainer.engine.adapters import add_adapters, trainable_parameters
from services.trainer.engine.apply_plan import apply_plan
from services.trainer.engine.attention import ATTENTION_NAME, register_attention
from services.trainer.engine.executors import Executor
from services.trainer.engine.executors.streaming import StreamingExecutor
from services.trainer.engine.models import DTYPES
from services.trainer.engine.streaming.chunks import Chunk
from services.trainer.engine.streaming.settings import StreamingSettings
from services.trainer.engine.streaming.step_journal import StepJournal
from services.trainer.engine.streaming.workspace import Workspace

SEED = 0
# PEFT starts B at zero, and then no loss would show what adapters do.
_ADAPTER_DEVIATION = 0.02


def random_model(
    config: Mapping[str, Any], dtype: torch.dtype, attention: str, device: torch.device
) -> Any:
    """The same weights for the same device and dtype, frozen; made there, which takes a moment."""
    torch.manual_seed(SEED)
    with device:
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**config), dtype=dtype, attn_implementation=attention
        )
    return model.requires_grad_(False)


def model_on_host(config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> Any:
    """A random model as the engine finds one after reading its weights: in host memory."""
    register_attention()
    return random_model(config, dtype, ATTENTION_NAME, device).to("cpu")


def random_window(plan: planner_pb2.Plan) -> torch.Tensor:
    """Token ids of a plan's window on the host, (1, S)."""
    generator = torch.Generator().manual_seed(SEED)
    tokens = int(plan.context_tokens + plan.target_tokens)
    return torch.randint(0, plan.model.vocabulary_size, (1, tokens), generator=generator)


class StockOnDevice(Stock):
    """Stock training of a model that is made on the device.

    float32: base and adapters are widened to fp32, with the values they have in 16 bits.
    """

    def __init__(
        self, config: Mapping[str, Any], plan: planner_pb2.Plan, device: torch.device,
        *, float32: bool = False,
    ) -> None:  # fmt: skip
        self.device, self._target_tokens = device, 0
        dtype = DTYPES[plan.execution.compute_dtype]
        model = random_model(config, dtype, "sdpa", device)
        dtype = torch.float32 if float32 else dtype
        self.model = add_adapters(model.to(dtype), plan.lora, dtype, SEED).train()
        self.model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        self.model.enable_input_require_grads()
        fill_adapters(self.model)


class StreamingOnDevice(Streaming):
    """The streaming executor over a model that is made on the device.

    float32: as of `StockOnDevice`; the plan is then for fp32.
    """

    def __init__(
        self, config: Mapping[str, Any], plan: planner_pb2.Plan, device: torch.device,
        *, made_in: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.device, self._executor = device, None
        dtype = DTYPES[plan.execution.compute_dtype]
        register_attention()
        self.model = random_model(config, made_in or dtype, ATTENTION_NAME, device).to(dtype)
        apply_plan(self.model, plan, device, SEED)
        fill_adapters(self.model)


@torch.no_grad()
def fill_adapters(model: Any) -> None:
    """Random adapters of bfloat16 values, the same on every device and in every dtype."""
    generator = torch.Generator().manual_seed(SEED)
    for parameter in trainable_parameters(model):
        values = torch.randn(parameter.shape, generator=generator) * _ADAPTER_DEVIATION
        parameter.copy_(values.to(torch.bfloat16))


class StageClock(StepJournal):
    """Seconds of every stage of a streaming step: layers up, the last one, layers down.

    In the place of a step's journal, which the executor tells of every layer that is done. Nothing
    is saved.
    """

    def __init__(self, device: torch.device) -> None:
        # Not the journal's own: it would make a folder.
        self.device = device
        self.seconds: list[float] = []
        self._last = 0.0

    def resume(self, workspace: Workspace) -> tuple[int, float]:
        """No stage is done; the first begins."""
        del workspace
        self.seconds.clear()
        synchronise(self.device)
        self._last = time.perf_counter()
        return 0, 0.0

    def boundary(self, workspace: Workspace, stages: tuple[int, int], loss: torch.Tensor) -> None:
        """A stage ends."""
        del workspace, stages, loss
        synchronise(self.device)
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


@dataclass(frozen=True, slots=True)
class ClockedExecutor:
    """An executor whose steps a clock is told of."""

    executor: Executor
    clock: StageClock

    def step(
        self, window_bs: torch.Tensor, gradient_scale: float, journal: StepJournal | None = None
    ) -> float:
        """The executor's, with the clock in place of a journal."""
        assert journal is None, "the clock takes its place"
        return self.executor.step(window_bs, gradient_scale, self.clock)

    def backward(self, window_bs: torch.Tensor, gradient_scale: float) -> torch.Tensor:
        """The executor's."""
        return self.executor.backward(window_bs, gradient_scale)

    def evaluate(self, window_bs: torch.Tensor) -> float:
        """The executor's."""
        return self.executor.evaluate(window_bs)


class SampledExecutor(StreamingExecutor):
    """The streaming executor with all of its memory, running some chunks of every layer.

    A chunk's time is a straight line over its place in the window, so that chunks spread evenly
    have the mean of all. What was left out has random keys, since times depend on the numbers.
    made_again_seconds: of the last step, by layer whose output was made again. share: all chunks
    over those that were run.
    """

    def __init__(self, model: Any, settings: StreamingSettings, sampled_chunks: int) -> None:
        """sampled_chunks: of every layer; 0 runs all."""
        super().__init__(model, settings)
        self._sampled_chunks = sampled_chunks
        self.made_again_seconds: dict[int, float] = {}
        self.share = Share()

    def _window(self, window_bs: torch.Tensor) -> Any:
        self.made_again_seconds.clear()
        whole = super()._window(window_bs)
        chosen = spread(whole.chunks, self._sampled_chunks)
        places = {chunk.index for chunk in chosen}
        if len(chosen) < len(whole.chunks):
            self._fill_keys(whole.chunks)
        with_targets = whole.with_targets & places
        self.share = Share(
            len(whole.chunks) / len(chosen), len(whole.with_targets) / len(with_targets)
        )
        return replace(whole, chunks=chosen, with_targets=with_targets)

    def _make_inputs_again(self, window: Any, layer: int) -> None:
        synchronise(self._device)
        started = time.perf_counter()
        super()._make_inputs_again(window, layer)
        synchronise(self._device)
        self.made_again_seconds[layer] = time.perf_counter() - started

    def _fill_keys(self, chunks: Sequence[Chunk]) -> None:
        heads = self._anatomy.heads
        for chunk in chunks:
            shape = (1, heads.key_value_heads, chunk.length, heads.head_dim)
            key, value = (torch.randn(shape, device=self._device, dtype=heads.dtype) for _ in "kv")
            self._workspace.keys.write(chunk, key, value)


def spread(chunks: Sequence[Chunk], count: int) -> list[Chunk]:
    """So many chunks, the first and the last among them, evenly between; all where it is 0."""
    last = len(chunks) - 1
    if not 1 < count <= last:
        return list(chunks)
    return [chunks[round(number * last / (count - 1))] for number in range(count)]
