"""What apply_plan does to a model, and what it refuses."""

from __future__ import annotations

import functools

import bitsandbytes as bnb
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from elite.planner.v1 import planner_pb2
from services.trainer.engine import attention
from services.trainer.engine.adapters import add_adapters, trainable_parameters
from services.trainer.engine.apply_plan import AppliedPlan, apply_plan
from services.trainer.engine.attention import ATTENTION_NAME, register_attention
from services.trainer.engine.executors import make_executor
from services.trainer.engine.executors.resident import ResidentExecutor
from services.trainer.engine.failures import EngineError
from services.trainer.engine.models import DTYPES
from services.trainer.engine.probe import check_loss
from tests.fixtures.engine import LLAMA_LINEARS, a_plan, tiny_config, tiny_model

CPU = torch.device("cpu")
NF4 = {"base_precision": planner_pb2.BASE_PRECISION_NF4}


def prepared(model_type: str = "llama", **overrides):
    register_attention()
    model = tiny_model(model_type, **overrides)
    model.requires_grad_(False)
    model.set_attn_implementation(ATTENTION_NAME)
    return model.eval()


def applied(plan: planner_pb2.Plan, **overrides) -> tuple[object, AppliedPlan]:
    model = prepared(**overrides).to(DTYPES[plan.execution.compute_dtype])
    return model, apply_plan(model, plan, CPU, seed=1)


def test_nf4_quantises_the_linear_modules_of_decoder_layers_and_nothing_else() -> None:
    # 64 columns: bitsandbytes quantises in blocks of 64.
    model, result = applied(
        a_plan(tiny_config(hidden_size=64), LLAMA_LINEARS, **NF4), hidden_size=64
    )
    quantised = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(quantised) == 2 * len(LLAMA_LINEARS)
    assert all(m.weight.dtype == torch.uint8 for m in quantised)
    assert all(m.weight.quant_state.nested for m in quantised)
    assert not any(m.support_avx512bf16_for_cpu for m in quantised)
    assert model.get_input_embeddings().weight.dtype == torch.float32
    assert model.get_output_embeddings().weight.dtype == torch.float32
    assert result.steps[0].startswith("nf4: 14 linear modules")


@pytest.mark.parametrize("dtype", [planner_pb2.DTYPE_BFLOAT16, planner_pb2.DTYPE_FLOAT32])
def test_nf4_gradients_survive_an_evaluation(dtype: int) -> None:
    """bitsandbytes repacks weights in evaluation on some CPUs, and gradients then vanish."""
    plan = a_plan(tiny_config(hidden_size=64), LLAMA_LINEARS, compute_dtype=dtype, **NF4)
    model, result = applied(plan, hidden_size=64)
    executor = ResidentExecutor(model, plan)
    window = torch.randint(0, 320, (1, 64))
    before = executor.evaluate(window)
    assert executor.step(window, 1.0) == pytest.approx(before, rel=0.01)
    gradients = [p.grad for p in trainable_parameters(result.model)]
    assert all(gradient is not None for gradient in gradients)
    # B is zero, so A has no gradient yet; every B must have one.
    assert sum(bool(gradient.any()) for gradient in gradients) == len(gradients) // 2


def test_adapters_and_base_have_the_compute_dtype() -> None:
    plan = a_plan(tiny_config(), LLAMA_LINEARS, compute_dtype=planner_pb2.DTYPE_BFLOAT16)
    model, result = applied(plan)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert len(trainable_parameters(result.model)) == 2 * 2 * len(LLAMA_LINEARS)


def test_tied_embeddings_stay_tied() -> None:
    model, _ = applied(a_plan(tiny_config(), LLAMA_LINEARS), tie_word_embeddings=True)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight.data_ptr() == embedding.weight.data_ptr()


def test_adapters_depend_on_the_seed_alone() -> None:
    plan = a_plan(tiny_config(), LLAMA_LINEARS)

    def first(seed: int) -> torch.Tensor:
        return trainable_parameters(apply_plan(prepared(), plan, CPU, seed).model)[0]

    torch.testing.assert_close(first(1), first(1), rtol=0, atol=0)
    assert not torch.equal(first(1), first(2))


def test_every_step_is_reported_in_order() -> None:
    _, result = applied(a_plan(tiny_config(hidden_size=64), LLAMA_LINEARS, **NF4), hidden_size=64)
    starts = ["nf4", "base in float32", "lora: rank 4", "attention: sdpa_flash", "recompute every"]
    assert len(result.steps) == len(starts)
    assert all(s.startswith(start) for s, start in zip(result.steps, starts, strict=True))
    assert result.attention_kernel == "sdpa_flash"


def test_no_kernel_named_means_a_fused_one() -> None:
    _, result = applied(a_plan(tiny_config(), LLAMA_LINEARS, attention_kernel=""))
    assert result.attention_kernel == "sdpa_flash"


def test_the_mathematical_kernel_can_be_asked_for() -> None:
    _, result = applied(a_plan(tiny_config(), LLAMA_LINEARS, attention_kernel="sdpa_math"))
    assert result.attention_kernel == "sdpa_math"


@pytest.mark.parametrize(
    ("execution", "overrides", "expected"),
    [
        ({"attention_kernel": "flash_attn"}, {}, "'flash_attn'.*sdpa_flash"),
        ({"attention_kernel": "sdpa_cudnn"}, {}, "sdpa_cudnn cannot run this model here"),
        (
            {"layer_inputs": planner_pb2.Store(placement=planner_pb2.PLACEMENT_HOST)},
            {},
            "HOST.*the device is the host",
        ),
    ],
)
def test_what_the_device_cannot_do_is_refused(execution, overrides, expected) -> None:
    with pytest.raises(EngineError, match=expected):
        applied(a_plan(tiny_config(), LLAMA_LINEARS, **execution), **overrides)


def test_unknown_adapter_targets_are_named() -> None:
    with pytest.raises(EngineError, match="nowhere_proj, which no decoder layer has"):
        applied(a_plan(tiny_config(), [*LLAMA_LINEARS, "nowhere_proj"]))


def test_targets_that_cannot_be_adapted_are_named() -> None:
    with pytest.raises(EngineError, match=r"target_modules \['input_layernorm'\]: Target module"):
        applied(a_plan(tiny_config(), ["input_layernorm"]))


def test_soft_capped_attention_is_refused_by_name() -> None:
    config = tiny_config("gemma2")
    with pytest.raises(EngineError, match="softcap"):
        apply_plan(prepared("gemma2"), a_plan(config, LLAMA_LINEARS), CPU, seed=1)


def test_adapters_are_on_decoder_layers_only() -> None:
    text = tiny_config("gemma3_text").to_dict()
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision)
    model = AutoModelForCausalLM.from_config(config)
    adapted = add_adapters(
        model, planner_pb2.Lora(rank=2, target_modules=["q_proj"]), torch.float32, 1
    )
    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(names) == 2 * 2
    assert all("language_model.layers." in name for name in names)


def test_sliding_window_shorter_than_the_window_is_refused_by_name() -> None:
    plan = a_plan(tiny_config("mistral"), LLAMA_LINEARS)
    model = prepared("mistral", sliding_window=32)
    apply_plan(model, plan, CPU, seed=1)
    executor = ResidentExecutor(model, plan)
    with pytest.raises(EngineError, match="sliding_window of 32 tokens"):
        executor.evaluate(torch.zeros((1, 64), dtype=torch.long))


@pytest.mark.parametrize(
    ("dtype", "factor"), [("FLOAT32", 1.0001), ("BFLOAT16", 1.02), ("FLOAT16", 1.005)]
)
def test_logits_the_loss_does_not_know_are_refused_by_name(dtype: str, factor: float) -> None:
    plan = a_plan(
        tiny_config(), LLAMA_LINEARS, compute_dtype=planner_pb2.Dtype.Value(f"DTYPE_{dtype}")
    )
    model = prepared().to(DTYPES[plan.execution.compute_dtype])
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _module, _inputs, logits: logits * factor)
    with pytest.raises(EngineError, match="llama makes its logits in a way"):
        apply_plan(model, plan, CPU, seed=1)
    hook.remove()
    check_loss(model, "")


@pytest.mark.parametrize("coefficient", [0.0, 0.001])
def test_a_loss_that_the_model_adds_is_refused_by_name(coefficient: float) -> None:
    model = prepared(
        "mixtral", num_local_experts=4, output_router_logits=True, router_aux_loss_coef=coefficient
    )
    if coefficient:
        with pytest.raises(
            EngineError, match="mixtral's loss is not the cross-entropy of the next token alone"
        ):
            check_loss(model, "")
    else:
        check_loss(model, "")


@pytest.mark.parametrize(
    ("family", "overrides", "expected"),
    [
        ("gemma", {"use_bidirectional_attention": True}, "not plain causal|that is not causal"),
        ("gpt_oss", {}, "needs s_aux"),
        ("llama4_text", {}, "llama4_text has no part of its own without the head"),
        ("recurrent_gemma", {"block_types": ["attention"], "tie_word_embeddings": False},
         "recurrent_gemma makes its logits"),
    ],
)  # fmt: skip
def test_families_that_are_something_else_are_refused(family, overrides, expected) -> None:
    model = prepared(family, **overrides)
    with pytest.raises(EngineError, match=expected):
        apply_plan(model, a_plan(model.config, ["q_proj"]), CPU, seed=1)


def test_a_model_that_wants_something_else_is_refused(monkeypatch) -> None:
    model = prepared()
    monkeypatch.setattr(model.model, "forward", lambda **_: {}["sliding_attention"])
    with pytest.raises(EngineError, match=r"llama cannot be called .* \(KeyError\('sliding_att"):
        apply_plan(model, a_plan(model.config, LLAMA_LINEARS), CPU, seed=1)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("qwen2_moe", {"sliding_window": 4, "use_sliding_window": False}),
        ("gemma3_text", {"sliding_window": 4, "layer_types": ["full_attention"] * 2}),
    ],
)
def test_a_sliding_window_that_no_layer_uses_is_none(family, overrides) -> None:
    model = prepared(family, **overrides)
    result = apply_plan(model, a_plan(model.config, ["q_proj"]), CPU, seed=1)
    assert result.attention_kernel == "sdpa_flash"


def test_what_attention_is_not_known_to_ignore_is_refused_by_name() -> None:
    query, key, value = (torch.randn(1, 2, 8, 8) for _ in range(3))
    plain = functools.partial(
        attention.causal_attention, torch.nn.Module(), query, key, value, None
    )
    plain(block_indices=None, use_cache=True, dropout=0.0, sliding_window=8)
    for wanted in ({"block_indices": key}, {"dropout": 0.1}, {"sliding_window": 7}):
        with pytest.raises(EngineError, match=f"Module needs .*{next(iter(wanted))}"):
            plain(**wanted)


def test_heads_are_repeated_for_the_kernel_that_cannot_group_them(monkeypatch) -> None:
    with attention.attention_kernel("sdpa_efficient"):
        assert not attention.kernels_group_heads()
    with attention.attention_kernel("sdpa_flash"):
        assert attention.kernels_group_heads()
    query, key, value = (torch.randn(1, heads, 8, 8) for heads in (4, 2, 2))
    grouped, _ = attention.causal_attention(torch.nn.Module(), query, key, value, None)
    monkeypatch.setattr(attention, "kernels_group_heads", lambda: False)
    repeated, _ = attention.causal_attention(torch.nn.Module(), query, key, value, None)
    torch.testing.assert_close(repeated, grouped)


def test_an_unknown_executor_is_refused() -> None:
    plan = a_plan(tiny_config(), LLAMA_LINEARS, executor=planner_pb2.EXECUTOR_UNSPECIFIED)
    with pytest.raises(EngineError, match="executor is 0"):
        make_executor(prepared(), plan)
