"""Weights that wait in host memory: the same training to the bit, two layers on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file

from bench.oracle import measure_step
from elite.planner.v1 import planner_pb2
from services.trainer.engine import apply_plan as apply_plan_module
from services.trainer.engine.adapters import add_adapters, trainable_parameters, write_adapter
from services.trainer.engine.apply_plan import AppliedPlan, apply_plan
from services.trainer.engine.attention import ATTENTION_NAME, attention_kernel, register_attention
from services.trainer.engine.checkpoint import CheckpointStore, Identity, Position
from services.trainer.engine.decoder import decoder_layers, last_hidden_states
from services.trainer.engine.executors import make_executor
from services.trainer.engine.executors.streaming import StreamingExecutor
from services.trainer.engine.failures import EngineError
from services.trainer.engine.memory_tracking import StorageTracker
from services.trainer.engine.models import DTYPES
from services.trainer.engine.optimizer import make_optimizer
from services.trainer.engine.specification import Training
from services.trainer.engine.streaming import weights as weights_module
from services.trainer.engine.streaming.copy_stream import CopyStream
from services.trainer.engine.streaming.settings import StreamingSettings
from services.trainer.engine.streaming.weights import StreamedWeights, stream_weights
from services.trainer.jobs.fence import Fence
from tests.fixtures.adapted import a_window, adapted_model
from tests.fixtures.engine import LLAMA_LINEARS, a_plan, linear_names, tiny_config, tiny_model

CPU = torch.device("cpu")
TOKENS, TARGETS = 64, 16
NF4 = {"base_precision": planner_pb2.BASE_PRECISION_NF4}
HOST = {"weight_placement": planner_pb2.PLACEMENT_HOST}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _small_slabs(monkeypatch) -> None:
    # So small that layers lie across the ends of slabs.
    monkeypatch.setattr(weights_module, "SLAB_BYTES", 20_000)


def settings(**changes: Any) -> StreamingSettings:
    return StreamingSettings(
        TOKENS, TARGETS, **{"chunk_tokens": 10, "loss_tile_rows": 5, **changes}
    )


def a_streaming_plan(model: Any, **execution: Any) -> planner_pb2.Plan:
    return a_plan(
        model.config, linear_names(model), executor=planner_pb2.EXECUTOR_STREAMING,
        streaming=planner_pb2.Streaming(chunk_tokens=10), **execution,
    )  # fmt: skip


def applied(plan: planner_pb2.Plan, monkeypatch, **overrides: Any) -> tuple[Any, AppliedPlan]:
    """A model as the plan wants it; the CPU may play a device with memory of its own."""
    monkeypatch.setattr(apply_plan_module, "_refuse_host", lambda *_: None)
    register_attention()
    model = tiny_model(plan.model.model_type, **overrides).requires_grad_(False).eval()
    model.set_attn_implementation(ATTENTION_NAME)
    return model, apply_plan(model.to(DTYPES[plan.execution.compute_dtype]), plan, CPU, seed=1)


def trained(
    plan: planner_pb2.Plan, monkeypatch, **overrides: Any
) -> tuple[list[float], list[torch.Tensor], list[torch.Tensor]]:
    """Losses of three optimiser steps, the last gradients, and the adapters they end with."""
    model, result = applied(plan, monkeypatch, **overrides)
    parameters = trainable_parameters(result.model)
    executor = make_executor(model, plan)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(executor.step(a_window(TOKENS), 1.0))
        losses.append(executor.evaluate(a_window(TOKENS)))
        optimizer.step()
    gradients = [parameter.grad for parameter in parameters]
    return losses, gradients, [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("precision", [{}, NF4])
@pytest.mark.parametrize("dtype", [planner_pb2.DTYPE_FLOAT32, planner_pb2.DTYPE_BFLOAT16])
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"num_hidden_layers": 5, "tie_word_embeddings": True}),
        ("qwen2", {"num_hidden_layers": 4}),  # biases
        ("phi", {"num_hidden_layers": 3}),  # biases everywhere, layer norm
        ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2}),
        ("gemma3_text", {"num_hidden_layers": 1}),
    ],
)
def test_training_is_the_same_to_the_bit(
    family: str, overrides: dict[str, Any], precision: dict[str, Any], dtype: int, monkeypatch
) -> None:
    overrides = {"hidden_size": 64, **overrides}  # bitsandbytes quantises in blocks of 64
    model = tiny_model(family, **overrides)
    execution = {"compute_dtype": dtype, **precision}
    if family == "gemma3_text":
        execution["layer_input_interval"] = 2
    resident = trained(a_streaming_plan(model, **execution), monkeypatch, **overrides)
    streamed = trained(a_streaming_plan(model, **execution, **HOST), monkeypatch, **overrides)
    assert streamed[0] == resident[0]
    for found, expected in zip(streamed[1:], resident[1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_what_was_done_is_said_in_order(monkeypatch) -> None:
    model = tiny_model(hidden_size=64)
    plan = a_streaming_plan(model, **NF4, **HOST)
    model, result = applied(plan, monkeypatch, hidden_size=64)
    assert result.steps[:3] == [
        "nf4: 14 linear modules, double-quantised",
        "base in float32 on cpu",
        "weights: 2 layers in 0.0 GiB of pinned host memory, two at a time on the device",
    ]
    assert result.steps[-1].startswith("streaming: ")
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(bnb.nn.Linear4bit) == 14


class Watched:
    """A model with streamed weights, and the layers fetched so far."""

    def __init__(self, monkeypatch, layers: int, **changes: Any) -> None:
        self.model, _ = adapted_model("llama", num_hidden_layers=layers)
        self.fetched: list[int] = []
        self.weights = stream_weights(self.model, CPU)
        load, held = self.weights._load, self.weights._held
        monkeypatch.setattr(self.weights, "_load", self._watch(load, held))
        self.executor = StreamingExecutor(self.model, settings(**changes))

    def _watch(self, load: Any, held: list[int | None]) -> Any:
        def watched(index: int) -> None:
            before = list(held)
            load(index)
            if held != before:
                self.fetched.append(index)

        return watched

    def during(self, work: Any) -> list[int]:
        """The layers fetched by some work, in order."""
        self.fetched.clear()
        work()
        return list(self.fetched)


def test_a_step_fetches_every_layer_once_up_and_once_down(monkeypatch) -> None:
    watched = Watched(monkeypatch, layers=6)

    def step() -> None:
        watched.executor.step(a_window(TOKENS), 1.0)

    # The first two are still there from the last backward, the last two from forward.
    assert watched.during(step)[-8:] == [2, 3, 4, 5, 3, 2, 1, 0]
    for _ in range(2):
        # The planner's figure: 2 (L - 2) layers a step.
        assert watched.during(step) == [2, 3, 4, 5, 3, 2, 1, 0]


def test_evaluations_and_whole_forwards_go_up(monkeypatch) -> None:
    watched = Watched(monkeypatch, layers=5)
    window = a_window(TOKENS)

    def evaluate() -> None:
        watched.executor.evaluate(window)

    watched.during(evaluate)
    assert watched.during(evaluate) == [0, 1, 2, 3, 4]
    assert watched.during(lambda: watched.executor.last_hidden_states(window)) == [0, 1, 2, 3, 4]


def test_inputs_of_every_few_layers_cost_one_more_pass(monkeypatch) -> None:
    watched = Watched(monkeypatch, layers=9, layer_input_interval=3)
    for _ in range(2):
        fetched = watched.during(lambda: watched.executor.step(a_window(TOKENS), 1.0))
    assert 2 * (9 - 2) < len(fetched) <= 3 * 9


def test_recording_passes_fetch_nothing(monkeypatch) -> None:
    watched = Watched(monkeypatch, layers=5)
    token_ids = a_window(7)
    parts = watched.executor.parts

    def record() -> None:
        embeddings_bce, _ = parts.call_of(3, token_ids, 0)
        parts.finish(embeddings_bce, token_ids, 0)

    assert watched.during(record) == []


def test_a_layer_waits_for_its_copy_and_the_next_one_is_on_its_way(monkeypatch) -> None:
    events: list[tuple[str, int]] = []

    class Noted(CopyStream):
        def copy(self, copies: Any, buffer: int, after: Any = None) -> None:
            events.append(("copy", buffer))
            super().copy(copies, buffer, after)

        def wait_for(self, buffer: int) -> None:
            events.append(("wait", buffer))
            super().wait_for(buffer)

    monkeypatch.setattr(weights_module, "CopyStream", Noted)
    model, _ = adapted_model("llama", num_hidden_layers=6)
    register_attention()
    model.set_attn_implementation(ATTENTION_NAME)
    for index, layer in enumerate(decoder_layers(model)):
        layer.register_forward_hook(lambda *_, index=index: events.append(("layer", index)))
    stream_weights(model, CPU)
    with torch.no_grad(), attention_kernel(""):
        last_hidden_states(model, a_window(TOKENS))
    expected = [("copy", 0)]
    for index in range(5):
        expected += [("wait", index % 2), ("copy", (index + 1) % 2), ("layer", index)]
    assert events == [*expected, ("wait", 1), ("layer", 5)]


def test_stock_forward_is_the_same_and_late_backwards_are_refused() -> None:
    register_attention()
    window = a_window(TOKENS)
    hidden = []
    for streams in (False, True):
        model, _ = adapted_model("llama", num_hidden_layers=4)
        model.set_attn_implementation(ATTENTION_NAME)
        if streams:
            stream_weights(model, CPU)
        with attention_kernel(""):
            hidden.append(last_hidden_states(model, window))
    torch.testing.assert_close(hidden[1], hidden[0], rtol=0, atol=0)
    hidden[0].sum().backward()
    # By now the first layers' buffers hold the last ones.
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        hidden[1].sum().backward()


def device_and_host_bytes(layers: int) -> tuple[int, int]:
    """Bytes beside the adapters that stand on the device, and in host memory."""
    with StorageTracker() as tracker:
        model = tiny_model(num_hidden_layers=layers).requires_grad_(False)
        # Parameters made at random: no operation has returned them yet.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        stream_weights(model, CPU)
    return tracker.current_bytes, tracker.host_peak_bytes


def test_the_device_holds_two_layers_of_any_number(monkeypatch) -> None:
    monkeypatch.undo()
    few, many = device_and_host_bytes(3), device_and_host_bytes(12)
    assert few == many
    assert few[1] == weights_module.SLAB_BYTES  # one slab has room for all of them
    monkeypatch.setattr(weights_module, "SLAB_BYTES", 20_000)
    layer_bytes = sum(p.nbytes for p in decoder_layers(tiny_model())[0].parameters())
    assert layer_bytes > 20_000
    assert device_and_host_bytes(12)[1] == -(-12 * layer_bytes // 20_000) * 20_000


@pytest.mark.parametrize("fake", [False, True])
def test_the_oracle_sees_what_the_planner_counts(fake: bool) -> None:
    measured = {}
    for layers in (3, 6):
        config = tiny_config(num_hidden_layers=layers)
        model = tiny_model(num_hidden_layers=layers)
        plan = a_streaming_plan(model, **HOST)
        measured[layers] = measure_step(config, plan, fake=fake)
        layer_bytes = sum(p.nbytes for p in decoder_layers(model)[0].parameters())
        all_bytes = sum(p.nbytes for p in model.parameters())
        adapter_bytes = sum(
            p.nbytes for p in trainable_parameters(add_adapters(model, plan.lora, torch.float32, 1))
        )
        resident = all_bytes + adapter_bytes - (layers - 2) * layer_bytes
        # Beside them rotary frequencies, and what aligning leaves free.
        assert 0 <= measured[layers].static_bytes - resident < 2 * 512 * 9 + 100
    assert measured[6].host_bytes > measured[3].host_bytes


def test_adapters_and_checkpoints_are_saved_as_ever(monkeypatch, tmp_path: Path) -> None:
    saved = {}
    for name, placement in {"resident": {}, "streamed": HOST}.items():
        plan = a_streaming_plan(tiny_model(hidden_size=64), **NF4, **placement)
        model, result = applied(plan, monkeypatch, hidden_size=64)
        parameters = trainable_parameters(result.model)
        optimizer = make_optimizer(plan.execution.optimizer, parameters, Training(steps=9))
        make_executor(model, plan).step(a_window(TOKENS), 1.0)
        optimizer.step()
        (tmp_path / name).mkdir()
        write_adapter(result.model, "base", tmp_path / name)
        identity = Identity.of(plan, "data", "weights", seed=1)
        store = CheckpointStore(Fence(tmp_path / name, 0))
        folder, _ = store.save(result.model, optimizer, Position(1, 1.0), identity)
        files = [*(tmp_path / name).glob("*.safetensors"), *folder.glob("*.safetensors")]
        saved[name] = {file.name: load_file(file) for file in files}
    assert len(saved["streamed"]["adapter_model.safetensors"]) == 2 * 2 * len(LLAMA_LINEARS)
    assert saved["streamed"].keys() == saved["resident"].keys()
    for name, tensors in saved["resident"].items():
        torch.testing.assert_close(saved["streamed"][name], tensors, rtol=0, atol=0)


def test_weights_that_layers_share_are_refused_by_name() -> None:
    model = tiny_model().requires_grad_(False)
    first, second = decoder_layers(model)
    second.mlp.down_proj = first.mlp.down_proj
    with pytest.raises(EngineError, match="decoder layers share weights"):
        stream_weights(model, CPU)


def test_taken_weights_leave_the_device_before_the_next_layer_comes() -> None:
    model = tiny_model(num_hidden_layers=3).requires_grad_(False)
    weights = StreamedWeights(CPU)
    layers = decoder_layers(model)
    weights.take(layers[0])
    assert sum(p.nbytes for p in layers[0].parameters()) == 0
    assert all(p.nbytes > 0 for p in layers[1].parameters())
