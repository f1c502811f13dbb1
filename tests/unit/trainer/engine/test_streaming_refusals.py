"""What the streaming executor cannot do exactly is refused when it is made, by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from elite.planner.v1 import planner_pb2
from services.trainer.engine.apply_plan import AppliedPlan, apply_plan
from services.trainer.engine.attention import ATTENTION_NAME, register_attention
from services.trainer.engine.executors import make_executor
from services.trainer.engine.executors.streaming import StreamingExecutor
from services.trainer.engine.failures import EngineError
from services.trainer.engine.models import DTYPES
from services.trainer.engine.streaming.settings import StreamingSettings
from tests.fixtures.engine import a_plan, linear_names, tiny_model

CPU = torch.device("cpu")
HOST = planner_pb2.Store(placement=planner_pb2.PLACEMENT_HOST)
INT8 = planner_pb2.Store(placement=planner_pb2.PLACEMENT_DEVICE, codec=planner_pb2.CODEC_INT8)


def a_streaming_plan(config: Any, targets: list[str], **execution: Any) -> planner_pb2.Plan:
    streaming = planner_pb2.Streaming(chunk_tokens=10, **execution.pop("streaming", {}))
    return a_plan(
        config, targets, executor=planner_pb2.EXECUTOR_STREAMING, streaming=streaming, **execution
    )


def prepared(family: str = "llama", **overrides: Any) -> Any:
    register_attention()
    model = tiny_model(family, **overrides).eval().requires_grad_(False)
    model.set_attn_implementation(ATTENTION_NAME)
    return model


def applied(model: Any, **execution: Any) -> tuple[AppliedPlan, planner_pb2.Plan]:
    plan = a_streaming_plan(model.config, linear_names(model), **execution)
    return apply_plan(model.to(DTYPES[plan.execution.compute_dtype]), plan, CPU, seed=1), plan


@pytest.mark.parametrize(
    ("execution", "expected"),
    [
        ({"streaming": {"key_values": HOST}}, "HOST, but the device is the host"),
        ({"streaming": {"hidden_gradients": INT8}}, r"hidden_gradients\.codec CODEC_INT8"),
        ({"checkpoint_policy": planner_pb2.CHECKPOINT_POLICY_NONE}, "CHECKPOINT_POLICY_NONE"),
        ({"attention_kernel": "sdpa_math"}, "'sdpa_math' cannot run this model here"),
        ({"layer_inputs": HOST}, "HOST, but the device is the host"),
        ({"streaming": {"hidden_gradients": HOST}}, "HOST, but the device is the host"),
        ({"weight_placement": planner_pb2.PLACEMENT_HOST}, "weights on HOST, but the device is"),
        ({"weight_placement": planner_pb2.PLACEMENT_DISK}, "weight_placement PLACEMENT_DISK"),
    ],
)
def test_plans_it_cannot_do(execution: dict[str, Any], expected: str) -> None:
    with pytest.raises(EngineError, match=expected):
        applied(prepared(), **execution)


def test_the_resident_executor_has_its_weights_on_the_device() -> None:
    model = prepared()
    plan = a_plan(
        model.config, linear_names(model), weight_placement=planner_pb2.PLACEMENT_HOST
    )  # fmt: skip
    with pytest.raises(EngineError, match="executor EXECUTOR_RESIDENT and weight_placement"):
        apply_plan(model, plan, CPU, seed=1)


def test_everything_it_cannot_do_is_said_at_once() -> None:
    model = prepared()
    plan = a_streaming_plan(
        model.config, linear_names(model), checkpoint_policy=planner_pb2.CHECKPOINT_POLICY_NONE
    )
    plan.lora.dropout = 0.5
    with pytest.raises(EngineError, match=r"CHECKPOINT_POLICY_NONE, plan\.lora\.dropout 0\.5"):
        StreamingSettings.of(plan)


LONG_ROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.5, 3.0, 4.0],
    "short_mscale": 1.1, "long_mscale": 1.3,
}  # fmt: skip
FALCON_H1 = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}


@pytest.mark.parametrize(
    ("family", "overrides", "targets", "expected"),
    [
        ("gemma2", {}, [], "softcap"),
        ("gpt_oss", {}, ["q_proj"], "s_aux"),
        # A state-space model beside attention in every layer: all looks well but the result.
        ("falcon_h1", FALCON_H1, ["q_proj"], "falcon_h1: layer 0 in chunks is not layer 0 whole"),
        (
            "mixtral",
            {"output_router_logits": True},
            ["q_proj"],
            "mixtral's loss is not the cross-entropy",
        ),
        # What positions are multiplied by depends on the last one passed.
        (
            "phimoe",
            {"num_local_experts": 4, "rope_parameters": LONG_ROPE},
            ["q_proj"],
            "phimoe has positions that depend on what is passed",
        ),
        ("llama", {}, ["q_proj", "embed_tokens"], "embed_tokens, which no decoder layer has"),
    ],
)
def test_models_it_cannot_do(family, overrides, targets, expected) -> None:
    model = prepared(family, **overrides)
    plan = a_streaming_plan(model.config, targets or linear_names(model))
    with pytest.raises(EngineError, match=expected):
        apply_plan(model, plan, CPU, seed=1)


@pytest.mark.parametrize(
    ("family", "overrides", "expected"),
    [
        ("bloom", {}, "0 attention calls in 2 layers"),
        ("diffllama", {}, "4 attention calls in 2 layers"),
        ("doge", {}, "cannot be called in parts"),
        ("gemma3n_text", {"num_kv_shared_layers": 0}, "hidden states of 4 dimensions"),
    ],
)
def test_models_that_go_another_way(family: str, overrides: Any, expected: str) -> None:
    with pytest.raises(EngineError, match=expected):
        StreamingExecutor(tiny_model(family, **overrides).eval(), StreamingSettings(64, 16, 10, 5))


@pytest.mark.parametrize("precision", ["BASE_PRECISION_FULL", "BASE_PRECISION_NF4"])
@pytest.mark.parametrize("dtype", [planner_pb2.DTYPE_BFLOAT16, planner_pb2.DTYPE_FLOAT32])
def test_a_plan_is_applied_and_trains(precision: str, dtype: int) -> None:
    model = prepared(hidden_size=64)
    result, plan = applied(
        model, base_precision=planner_pb2.BasePrecision.Value(precision), compute_dtype=dtype,
        checkpoint_policy=planner_pb2.CHECKPOINT_POLICY_SELECTIVE,
    )  # fmt: skip
    assert result.attention_kernel == "sdpa_flash"
    assert result.steps[-1].startswith("streaming: chunks of 10 tokens, layer inputs on device")
    executor = make_executor(model, plan)
    window = torch.randint(0, 320, (1, 64))
    loss = executor.step(window, 1.0)
    assert loss == pytest.approx(executor.evaluate(window), rel=1e-6)
    trained = [p for p in model.parameters() if p.requires_grad]
    # B is zero, so A has no gradient yet; every B must have one.
    assert sum(bool(p.grad.any()) for p in trained) == len(trained) // 2


def test_a_model_whose_rounding_grows_through_its_layers_is_not_refused() -> None:
    """Two ways to round to bfloat16 are far apart after all layers, and near after each."""
    model = prepared("llama", num_hidden_layers=24, initializer_range=0.4).to(torch.bfloat16)

    def rounded(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        """As kernels do that round a product of few rows in another way."""
        return output if output.shape[1] == 16 else output * (1 + 2**-7)

    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_hook(rounded)
    plan = a_streaming_plan(
        model.config, linear_names(model), compute_dtype=planner_pb2.DTYPE_BFLOAT16
    )
    apply_plan(model, plan, CPU, seed=1)
    whole, in_chunks = (
        StreamingExecutor(model, StreamingSettings(16, 15, chunk, 5)).last_hidden_states(
            torch.arange(16)[None]
        )
        for chunk in (16, 5)
    )
    assert float((in_chunks - whole).float().norm() / whole.float().norm()) > 0.05
