"""The streaming executor against stock transformers and PEFT: loss and every adapter gradient."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch

from services.trainer.engine.executors.streaming import StreamingExecutor
from services.trainer.engine.failures import EngineError
from services.trainer.engine.streaming.settings import StreamingSettings
from services.trainer.engine.streaming.stores import Place
from tests.fixtures.adapted import (
    a_window,
    adapted_model,
    gradients_of,
    relative_errors,
    stock_gradients,
)

TOKENS, TARGETS = 66, 16
TOLERANCE = 1e-5
SLIDING_AND_FULL = ["sliding_attention", "full_attention"]
ROPE = {"rope_theta": 10000.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "phi": ("phi", {}),
    "phi3": ("phi3", {}),
    "gemma": ("gemma", {}),
    "starcoder2": ("starcoder2", {}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "granite": (
        "granite",
        {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    ),
    "stablelm": ("stablelm", {}),
    "gpt_neox": ("gpt_neox", {}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "glm": ("glm", {}),
    "ministral3": ("ministral3", {}),
    "hunyuan": ("hunyuan_v1_dense", {"head_dim": 8}),
    "arcee": ("arcee", {}),
    "cwm, window": ("cwm", {"sliding_window": 9, "layer_types": SLIDING_AND_FULL}),
    "glm4": ("glm4", {}),
    "ernie4_5": ("ernie4_5", {}),
    "helium": ("helium", {}),
    "seed_oss": ("seed_oss", {}),
    # Layers without positions, of which some attend to everything.
    "cohere2, window": (
        "cohere2", {"logit_scale": 0.25, "sliding_window": 9, "layer_types": SLIDING_AND_FULL},
    ),
    "exaone4, window": ("exaone4", {"sliding_window": 9, "layer_types": SLIDING_AND_FULL}),
    "nemotron": ("nemotron", {}),
    "opt": ("opt", {}),
    # Mixtures of experts: a token's experts depend on the token alone.
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    # Layers return a tuple whose second part is None.
    "bamba, attention": (
        "bamba", {"attn_layer_indices": [0, 1], "mamba_n_heads": 4, "mamba_d_head": 16},
    ),
    # Sliding windows really shorter than the sequence, and than a chunk.
    "mistral, window": ("mistral", {"sliding_window": 20}),
    "starcoder2, window": ("starcoder2", {"sliding_window": 11}),
    "gemma2, window": (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": 2.0, "sliding_window": 13},
    ),
    "gemma3, window": ("gemma3_text", {"sliding_window": 9, "layer_types": SLIDING_AND_FULL}),
    "olmo3, window": ("olmo3", {"sliding_window": 1, "layer_types": SLIDING_AND_FULL}),
    # Frequencies that depend on the length of the window.
    "llama, yarn": ("llama", {"rope_parameters": {
        **ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
    "qwen2, dynamic": ("qwen2", {"max_position_embeddings": 32, "rope_parameters": {
        **ROPE, "rope_type": "dynamic", "factor": 2.0}}),
    "phi3, longrope": ("phi3", {"rope_parameters": {
        **ROPE, "rope_type": "longrope", "original_max_position_embeddings": 16,
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.5, 3.0, 4.0]}}),
    "tied": ("llama", {"tie_word_embeddings": True}),
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def settings(chunk_tokens: int, **changes: Any) -> StreamingSettings:
    return StreamingSettings(TOKENS, TARGETS, chunk_tokens, **{"loss_tile_rows": 5, **changes})


def streamed(
    family: str, with_settings: StreamingSettings, overrides: dict[str, Any],
    dtype: torch.dtype = torch.float32, scales: tuple[float, ...] = (1.0,), batch: int = 1,
) -> tuple[float, dict[str, torch.Tensor]]:  # fmt: skip
    model, parameters = adapted_model(family, dtype, **overrides)
    executor = StreamingExecutor(model, with_settings)
    losses = [executor.step(a_window(with_settings.tokens, batch), scale) for scale in scales]
    return losses[0], gradients_of(parameters)


@functools.cache
def stock(name: str, batch: int = 1) -> tuple[float, dict[str, torch.Tensor]]:
    family, overrides = FAMILIES[name]
    return stock_gradients(family, a_window(TOKENS, batch), TARGETS, **overrides)


# 1, 2, 7 and 33 chunks; the seventh of ten tokens has six.
@pytest.mark.parametrize("chunk_tokens", [66, 33, 10, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_those_of_stock_training(name: str, chunk_tokens: int) -> None:
    family, overrides = FAMILIES[name]
    selective = chunk_tokens in (33, 10)
    outputs = Place.DEVICE if selective else None
    with_settings = settings(chunk_tokens, attention_outputs=outputs)
    loss, gradients = streamed(family, with_settings, overrides)
    expected_loss, expected = stock(name)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    for parameter, error in relative_errors(gradients, expected).items():
        assert error <= TOLERANCE, parameter


def test_nothing_is_made_of_layers_that_nothing_below_is_trained_in() -> None:
    """As where a mixture of experts begins with layers that have none, and only experts learn."""
    model, parameters = adapted_model("llama", num_hidden_layers=4)
    _, expected = stock_gradients("llama", a_window(TOKENS), TARGETS, num_hidden_layers=4)
    frozen = {name for name in parameters if ".layers.0." in name or ".layers.1." in name}
    for name in frozen:
        parameters.pop(name).requires_grad_(False)
    executor = StreamingExecutor(model, settings(10))
    executor.step(a_window(TOKENS), 1.0)
    found = gradients_of(parameters)
    errors = relative_errors(found, {name: expected[name] for name in found})
    assert max(errors.values()) <= TOLERANCE
    assert frozen


def test_a_router_that_makes_several_tensors() -> None:
    """PhimoeTopKRouter is a linear module, and returns a tuple."""
    modules = ["q_proj", "v_proj"]
    model, parameters = adapted_model("phimoe", modules=modules, num_local_experts=4)
    loss = StreamingExecutor(model, settings(10)).step(a_window(TOKENS), 1.0)
    expected_loss, expected = stock_gradients(
        "phimoe", a_window(TOKENS), TARGETS, modules=modules, num_local_experts=4
    )
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert max(relative_errors(gradients_of(parameters), expected).values()) <= TOLERANCE


def test_gradients_accumulate_with_their_scale() -> None:
    _, gradients = streamed("qwen2", settings(10), {}, scales=(0.25, 0.5))
    expected = {name: 0.75 * gradient for name, gradient in stock("qwen2")[1].items()}
    assert max(relative_errors(gradients, expected).values()) <= TOLERANCE


def test_evaluation_is_the_loss_without_gradients() -> None:
    model, parameters = adapted_model("gemma3_text", **FAMILIES["gemma3, window"][1])
    executor = StreamingExecutor(model, settings(10))
    expected, _ = stock("gemma3, window")
    assert executor.evaluate(a_window(TOKENS)) == pytest.approx(expected, rel=TOLERANCE)
    assert all(parameter.grad is None for parameter in parameters.values())


def test_a_batch_of_windows() -> None:
    loss, gradients = streamed("mistral", settings(10, batch_size=3), {"sliding_window": 20},
                               batch=3)  # fmt: skip
    expected_loss, expected = stock("mistral, window", batch=3)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert max(relative_errors(gradients, expected).values()) <= TOLERANCE


def test_a_window_of_targets_and_one_context_token() -> None:
    with_settings = StreamingSettings(TOKENS, TOKENS - 1, 10, loss_tile_rows=7)
    loss, gradients = streamed("llama", with_settings, {})
    expected_loss, expected = stock_gradients("llama", a_window(TOKENS), TOKENS - 1)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert max(relative_errors(gradients, expected).values()) <= TOLERANCE


@pytest.mark.parametrize("chunk_tokens", [1, 2, 50])
def test_the_shortest_window_is_one_token_and_one_target(chunk_tokens: int) -> None:
    loss, gradients = streamed("llama", StreamingSettings(2, 1, chunk_tokens, 1), {})
    expected_loss, expected = stock_gradients("llama", a_window(2), 1)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert max(relative_errors(gradients, expected).values()) <= TOLERANCE


def test_a_loss_that_is_not_a_number_is_handed_on() -> None:
    model, _ = adapted_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = float("nan")
    assert math.isnan(StreamingExecutor(model, settings(10)).step(a_window(TOKENS), 1.0))


@pytest.mark.parametrize("tokens", [1, TARGETS])
def test_windows_without_context_are_refused(tokens: int) -> None:
    executor = StreamingExecutor(adapted_model("llama")[0], settings(10))
    with pytest.raises(EngineError, match=rf"\(1, {tokens}\) tokens.* the last 16 being targets"):
        executor.step(a_window(tokens), 1.0)


def test_shorter_windows_than_planned_are_taken_and_longer_ones_refused() -> None:
    model, parameters = adapted_model("llama")
    executor = StreamingExecutor(model, settings(10))
    short = a_window(40)
    loss = executor.step(short, 1.0)
    expected_loss, expected = stock_gradients("llama", short, TARGETS)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert max(relative_errors(gradients_of(parameters), expected).values()) <= TOLERANCE
    with pytest.raises(EngineError, match=r"\(1, 67\) tokens; the plan is for \(1, 66\)"):
        executor.step(a_window(67), 1.0)


@pytest.mark.parametrize("chunk_tokens", [10, 2])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3, window"])
def test_bfloat16_rounds_no_worse_than_stock(name: str, chunk_tokens: int) -> None:
    family, overrides = FAMILIES[name]
    _, exact = stock(name)
    window = a_window(TOKENS)
    _, of_stock = stock_gradients(
        family, window, TARGETS, torch.bfloat16, attention="sdpa", **overrides
    )
    with_settings = settings(chunk_tokens, attention_outputs=Place.DEVICE)
    _, found = streamed(family, with_settings, overrides, torch.bfloat16)
    ours, theirs = (
        torch.cat([(gradients[n] - exact[n]).flatten() for n in sorted(exact)]).norm()
        for gradients in (found, of_stock)
    )
    assert float(ours) <= 1.5 * float(theirs)
