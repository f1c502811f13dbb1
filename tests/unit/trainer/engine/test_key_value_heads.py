"""Conversion to fewer key-value heads: exact where it can be, measured, refused by name."""

from __future__ import annotations

import copy
import re
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from elite.planner.v1 import planner_pb2
from services.trainer.engine.apply_plan import apply_plan
from services.trainer.engine.attention import ATTENTION_NAME, register_attention
from services.trainer.engine.executors import make_executor
from services.trainer.engine.failures import BAD_MODEL, EngineError
from services.trainer.engine.key_value_heads import convert_and_measure, convert_key_value_heads
from tests.fixtures.adapted import a_window, gradients_of, relative_errors
from tests.fixtures.engine import LLAMA_LINEARS, a_plan, linear_names, tiny_config, tiny_model

HEADS, COUNT = 4, 2
TOKENS = 64
CPU = torch.device("cpu")
STREAMING = {
    "executor": planner_pb2.EXECUTOR_STREAMING,
    "streaming": planner_pb2.Streaming(chunk_tokens=10),
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2, biases": ("qwen2", {}),
    "qwen3, norm of each head": ("qwen3", {}),
    "phi, biases": ("phi", {}),
    "starcoder2, biases": ("starcoder2", {}),
    "stablelm": ("stablelm", {}),
    "gemma": ("gemma", {}),
    "granite": ("granite", {"embedding_multiplier": 3.0}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "olmo2, norm over all heads": ("olmo2", {}),
    "mixtral, experts": ("mixtral", {"num_local_experts": 4}),
    "llama, yarn": ("llama", {"rope_parameters": {
        "rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 16}}),
}  # fmt: skip


def full_heads(name: str, **overrides: Any) -> Any:
    """A model with a key-value head per query head, and weights large enough to matter."""
    family, of_family = FAMILIES.get(name, (name, {}))
    sizes = {} if family == "gpt_neox" else {"num_key_value_heads": HEADS}
    model = tiny_model(family, **{**sizes, **of_family, **overrides}).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if is_pooled(name, parameter):  # biases start at zero, norms at one
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def is_pooled(name: str, parameter: torch.Tensor) -> bool:
    owner = name.split(".")[-2]
    width_of_keys = 32  # HEADS heads of 8; a norm of each head has 8
    return owner in ("k_proj", "v_proj", "k_norm") and len(parameter) == width_of_keys


def pooled(tensor: torch.Tensor) -> torch.Tensor:
    """Heads 0 and 1, 2 and 3, spelled out."""
    heads = tensor.split(8)
    return torch.cat([(heads[0] + heads[1]) / 2, (heads[2] + heads[3]) / 2])


def reference(model: Any) -> Any:
    """A model that was made with fewer heads, and given the pooled weights."""
    config = copy.deepcopy(model.config)
    config.num_key_value_heads = COUNT
    made = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    state = model.state_dict()
    made.load_state_dict(
        {name: pooled(t) if is_pooled(name, t) else t for name, t in state.items()}
    )
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_that_are_alike_give_the_same_logits(name: str) -> None:
    model = full_heads(name)
    for key, parameter in model.named_parameters():
        if is_pooled(key, parameter):
            heads = parameter.split(8)
            parameter.copy_(torch.cat([heads[0], heads[0], heads[2], heads[2]]))
    tokens = a_window(TOKENS)
    before = model(input_ids=tokens).logits
    assert convert_key_value_heads(model, COUNT) == HEADS
    torch.testing.assert_close(model(input_ids=tokens).logits, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_converted_model_is_the_model_with_fewer_heads(name: str) -> None:
    model = full_heads(name)
    expected = reference(model)
    kept = {key: p for key, p in model.named_parameters() if not is_pooled(key, p)}
    convert_key_value_heads(model, COUNT)
    assert model.config.num_key_value_heads == COUNT
    assert not model.training
    assert model.state_dict().keys() == expected.state_dict().keys()
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[key], rtol=0, atol=1e-6)
    parameters = dict(model.named_parameters())
    assert all(parameters[key] is parameter for key, parameter in kept.items())  # moved
    assert not any(parameter.requires_grad for parameter in parameters.values())
    tokens = a_window(TOKENS)
    torch.testing.assert_close(model(tokens).logits, expected(tokens).logits, rtol=0, atol=1e-5)


def test_one_head_for_all() -> None:
    model = full_heads("llama")
    weight = model.model.layers[1].self_attn.v_proj.weight.clone()
    convert_key_value_heads(model, 1)
    mean = weight.view(HEADS, 8, -1).mean(0)
    torch.testing.assert_close(model.model.layers[1].self_attn.v_proj.weight, mean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_mean_is_taken_in_fp32(dtype: torch.dtype) -> None:
    """Of three heads: half of a sum in 16 bits has no error of its own, a third has."""
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 6}
    model = full_heads("llama", **sizes).to(dtype)
    weight = model.model.layers[0].self_attn.k_proj.weight
    expected = weight.float().view(COUNT, 3, 8, -1).mean(1).view(COUNT * 8, -1).to(dtype)
    convert_key_value_heads(model, COUNT)
    found = model.model.layers[0].self_attn.k_proj.weight
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_tied_embeddings_stay_tied() -> None:
    model = full_heads("tied")
    convert_key_value_heads(model, COUNT)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def with_random_b(model: Any) -> dict[str, torch.nn.Parameter]:
    """The adapters' parameters. B starts at zero, where half of all gradients are zero too."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(11)
    for name in sorted(parameters):
        if "lora_B" in name:
            parameters[name].data = 0.1 * torch.randn(parameters[name].shape, generator=generator)
    return parameters


def stock_gradients(model: Any, plan: planner_pb2.Plan) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(5)
    lora = LoraConfig(
        r=4, lora_alpha=8, target_modules=list(plan.lora.target_modules), task_type="CAUSAL_LM"
    )
    parameters = with_random_b(get_peft_model(model, lora))
    labels = a_window(TOKENS)
    labels[:, : plan.context_tokens] = -100
    loss = model(input_ids=a_window(TOKENS), labels=labels, use_cache=False).loss
    loss.backward()
    return float(loss.detach()), gradients_of(parameters)


@pytest.mark.parametrize("executor", [{}, STREAMING], ids=["resident", "streaming"])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_stock_training(name: str, executor: dict[str, Any]) -> None:
    register_attention()
    model = full_heads(name)
    plan = a_plan(model.config, linear_names(model), key_value_head_count=COUNT, **executor)
    expected_loss, expected = stock_gradients(reference(model), plan)
    model.set_attn_implementation(ATTENTION_NAME)
    adapted = apply_plan(model, plan, CPU, seed=5).model
    parameters = with_random_b(adapted)
    loss = make_executor(model, plan).step(a_window(TOKENS), 1.0)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for parameter, error in relative_errors(gradients_of(parameters), expected).items():
        assert error <= 1e-5, parameter


def stock_loss(model: Any, window: torch.Tensor) -> float:
    return float(model(input_ids=window, labels=window).loss)


def losses(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"loss (\S+) before, (\S+) after", text)[0]]


def test_what_it_costs_is_measured_on_the_first_tokens_of_the_sample() -> None:
    register_attention()
    model = full_heads("llama", initializer_range=0.3)
    window = a_window(300)
    expected = [stock_loss(m, window[:, :256]) for m in (model, reference(model))]
    assert abs(expected[0] - expected[1]) > 0.05
    model.set_attn_implementation(ATTENTION_NAME)
    plan = a_plan(model.config, LLAMA_LINEARS, key_value_head_count=COUNT)
    first, *rest = apply_plan(model, plan, CPU, seed=1, sample_bs=window).steps
    assert first.startswith("key-value heads: 4 to 2 by mean pooling; loss ")
    assert first.endswith(" after, on 256 tokens of your data")
    assert losses(first) == pytest.approx(expected, abs=0.006)
    assert rest[0].startswith("base in float32")


def test_a_sample_is_no_longer_than_a_sliding_window() -> None:
    register_attention()
    model = full_heads("mistral", sliding_window=32, initializer_range=0.3)
    expected = [stock_loss(m, a_window(TOKENS)[:, :32]) for m in (model, reference(model))]
    model.set_attn_implementation(ATTENTION_NAME)
    text = convert_and_measure(model, COUNT, a_window(TOKENS))
    assert text.endswith("on 32 tokens of your data")
    assert losses(text) == pytest.approx(expected, abs=0.006)


def test_without_a_sample_nothing_is_measured() -> None:
    text = convert_and_measure(full_heads("llama"), COUNT, None)
    assert text == "key-value heads: 4 to 2 by mean pooling"


def test_a_plan_that_leaves_the_heads_converts_nothing() -> None:
    register_attention()
    model = full_heads("llama")
    model.set_attn_implementation(ATTENTION_NAME)
    steps = apply_plan(model, a_plan(model.config, LLAMA_LINEARS), CPU, 1, a_window(8)).steps
    assert steps[0] == "base in float32 on cpu"
    assert model.config.num_key_value_heads == HEADS


def test_conversion_comes_before_quantisation() -> None:
    register_attention()
    model = full_heads("llama", hidden_size=64)
    model.set_attn_implementation(ATTENTION_NAME)
    nf4 = planner_pb2.BASE_PRECISION_NF4
    plan = a_plan(model.config, LLAMA_LINEARS, key_value_head_count=COUNT, base_precision=nf4)
    steps = apply_plan(model, plan, CPU, seed=1).steps
    assert [step.partition(":")[0] for step in steps[:2]] == ["key-value heads", "nf4"]
    keys = model.model.layers[0].self_attn.k_proj.base_layer
    assert isinstance(keys, bnb.nn.Linear4bit)
    assert keys.weight.quant_state.shape == (COUNT * 8, 64)
    assert make_executor(model, plan).step(a_window(TOKENS), 1.0) > 0


@pytest.mark.parametrize(
    ("family", "overrides", "count", "expected"),
    [
        ("phi3", {}, 2, r"phi3: model\.layers\.0\.self_attn\.qkv_proj\.weight cannot be pooled"),
        ("gpt_neox", {}, 2, "gpt_neox has no num_key_value_heads"),
        ("opt", {}, 2, "opt: no parameter depends on num_key_value_heads"),
        ("cohere", {"use_qk_norm": True}, 2, r"cohere: .*k_norm\.weight cannot be pooled"),
        ("stablelm", {"qk_layernorm": True}, 2, r"stablelm: .*k_layernorm\..* cannot be pooled"),
        ("llama", {}, 3, r"key_value_head_count 3 does not divide the model's 4: give a div"),
        ("llama", {}, 8, "key_value_head_count 8 does not divide the model's 4"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_left_as_it_was(
    family: str, overrides: dict[str, Any], count: int, expected: str
) -> None:
    model = full_heads(family, **overrides)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(EngineError, match=expected) as refused:
        convert_key_value_heads(model, count)
    assert refused.value.cause == BAD_MODEL
    assert getattr(model.config, "num_key_value_heads", None) in (None, HEADS)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    model(input_ids=a_window(8))


def test_a_model_with_as_many_heads_already_is_left_alone() -> None:
    config = tiny_config()
    model = AutoModelForCausalLM.from_config(config)
    before = dict(model.named_parameters())
    assert convert_key_value_heads(model, config.num_key_value_heads) == COUNT
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
