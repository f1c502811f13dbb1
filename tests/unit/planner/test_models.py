"""Models: exact parameter counts, and configs that are refused by field."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import FieldViolation, ServiceError
from services.planner.architectures import architectures
from services.planner.budgets import Constraints
from services.planner.config_reader import ConfigReader
from services.planner.ladder import load_ladder
from services.planner.models import ModelShape, catalogue, model_by_id, model_from_config
from services.planner.search import plan
from services.planner.tables import table
from tests.support.machines import machine

# What the model's publisher says it has (shared embeddings once).
PUBLISHED_PARAMETERS = {
    "smollm2-135m": 134515008,
    "smollm2-360m": 361821120,
    "smollm2-1.7b": 1711376384,
    "qwen2.5-0.5b": 494032768,
    "qwen2.5-1.5b": 1543714304,
    "qwen2.5-7b": 7615616512,
    "qwen3-0.6b": 596049920,
    "qwen3-8b": 8190735360,
    "llama-2-7b": 6738415616,
    "llama-3.1-8b": 8030261248,
    "llama-3.1-70b": 70553706496,
    "llama-3.2-1b": 1235814400,
    "mistral-7b-v0.3": 7248023552,
    "phi-2": 2779683840,
    "phi-3-mini-4k": 3821079552,
    "starcoder2-3b": 3030371328,
    "phi-4-mini": 3836021760,
    "phi-4": 14659507200,
    "gemma-2b": 2506172416,
    "gemma-3-1b": 999885952,
    "olmo-2-7b": 7298617344,
    "tinyllama-1.1b": 1100048384,
    "stablelm-3b": 2795443200,
    "pythia-1.4b": 1414647808,
    "aya-23-8b": 8028033024,
}


@pytest.mark.parametrize("model_id", PUBLISHED_PARAMETERS)
def test_parameter_counts_are_the_published_ones(model_id: str) -> None:
    assert model_by_id(model_id).parameter_count == PUBLISHED_PARAMETERS[model_id]


@pytest.mark.parametrize("row", table("models")["models"], ids=lambda row: row["id"])
def test_parameter_counts_are_those_of_transformers(row: dict[str, Any]) -> None:
    from transformers import CONFIG_MAPPING

    fields = dict(row["config"])
    is_as_transformers_has_it(
        model_by_id(row["id"]), CONFIG_MAPPING[fields.pop("model_type")](**fields)
    )


# Architectures of which no published model is in the catalogue, with the fields that their classes
# cannot do without.
WITHOUT_A_MODEL: dict[str, dict[str, int]] = {
    "ministral": {"head_dim": 64},
    "ministral3": {},
    "cwm": {},
    "hunyuan_v1_dense": {"head_dim": 64},
    "arcee": {},
    "nemotron": {"num_key_value_heads": 8},
}


@pytest.mark.parametrize("model_type", WITHOUT_A_MODEL)
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_model_of_a_class_by_default_is_as_transformers_has_it(
    model_type: str, is_whole: bool
) -> None:
    """From all fields of its config, and from the sizes alone, the rest being the class's."""
    from transformers import CONFIG_MAPPING

    given = WITHOUT_A_MODEL[model_type]
    config = CONFIG_MAPPING[model_type](**given)
    fields = config.to_dict()
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "vocab_size", "model_type")  # fmt: skip
    kept = fields if is_whole else {name: fields[name] for name in (*sizes, *given)}
    shape = model_from_config(json.dumps(kept))
    is_as_transformers_has_it(shape, config)
    windows = [kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ()]
    assert list(shape.windowed) == (windows or [False] * shape.layer_count)
    assert shape.activation == config.hidden_act
    assert shape.max_position_embeddings == config.max_position_embeddings


def is_as_transformers_has_it(shape: ModelShape, config: Any) -> None:
    """The same parameters, and the same linears in a layer."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == shape.parameter_count
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    linears = {
        name.rpartition(".")[2]: (module.in_features, module.out_features, module.bias is not None)
        for name, module in layers[0].named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert linears == {x.name: (x.inputs, x.outputs, x.bias) for x in shape.linears}


def test_every_architecture_has_a_model_in_the_catalogue_or_is_tested_without() -> None:
    used = {model.architecture.model_type for model in catalogue().values()}
    assert set(architectures()) == used | set(WITHOUT_A_MODEL)
    assert not used & set(WITHOUT_A_MODEL)


def test_the_demo_model_names_its_packaged_weights() -> None:
    from importlib import metadata

    weights = model_by_id("smollm2-135m").weights
    distribution = metadata.distribution(weights.distribution)
    assert distribution.locate_file(weights.file).is_file()  # type: ignore[attr-defined]


def test_an_unknown_id_gets_close_matches() -> None:
    with pytest.raises(ServiceError, match=r"model\.model_id: 'qwen2-1.5b'.*qwen2\.5-1\.5b"):
        model_by_id("qwen2-1.5b")


def test_a_model_goes_by_its_hub_id_too() -> None:
    for name in ("Qwen/Qwen2.5-1.5B", "qwen/qwen2.5-1.5b"):
        assert model_by_id(name) is model_by_id("qwen2.5-1.5b")
    for name in ("", "Qwen/Qwen9"):
        with pytest.raises(ServiceError, match=r"model\.model_id"):
            model_by_id(name)


FULL = ["full_attention"] * 2
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def test_defaults_are_those_of_transformers() -> None:
    shape = model_from_config(json.dumps(LLAMA))
    assert shape.key_value_head_count == 4
    assert shape.head_size == 16
    assert not shape.tied_embeddings
    assert shape.max_position_embeddings == 2048
    assert shape.windowed_layer_count == 0


def test_windowed_layers_are_counted() -> None:
    def windowed(**fields: object) -> tuple[int, int]:
        shape = model_from_config(json.dumps(LLAMA | fields))
        return shape.windowed_layer_count, shape.sliding_window

    assert windowed(model_type="mistral", num_key_value_heads=4) == (2, 4096)
    assert windowed(model_type="mistral", num_key_value_heads=4, sliding_window=None) == (0, 0)
    qwen = {"model_type": "qwen2", "num_key_value_heads": 4, "max_window_layers": 1}
    assert windowed(**qwen) == (0, 0)
    assert windowed(**qwen, use_sliding_window=True, sliding_window=7) == (1, 7)
    gemma = {"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 512}
    assert windowed(**gemma) == (6, 512)
    types = ["sliding_attention"] * 3 + ["full_attention"] * 4
    assert windowed(**gemma, layer_types=types) == (3, 512)


def test_the_last_layer_may_have_a_window() -> None:
    def last(**fields: object) -> bool:
        return model_from_config(json.dumps(LLAMA | fields)).last_layer_windowed

    gemma = {"model_type": "gemma3_text", "num_key_value_heads": 4, "sliding_window": 512}
    assert last(**gemma, num_hidden_layers=7)
    assert not last(**gemma, num_hidden_layers=6)
    types = ["sliding_attention", "full_attention"]
    assert not last(**gemma, layer_types=types)
    assert last(**gemma, layer_types=types[::-1])
    assert not last(model_type="llama")


FULL, SLIDING = ["full_attention"] * 2, ["sliding_attention"] * 2


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["LlamaForCausalLM"], "layer_types": ["full_attention"] * 2},
        {"architectures": ["LlamaModel"], "tie_word_embeddings": True},
        {"is_causal": True, "hidden_activation": "unread", "per_layer_config": {}},
        {"model_type": "gpt_neox", "num_key_value_heads": 4, "head_dim": 16},
    ],
)
def test_a_field_that_changes_nothing_is_no_reason_to_refuse(change: dict[str, Any]) -> None:
    assert model_from_config(json.dumps(LLAMA | change)).layer_count == 2


@pytest.mark.parametrize("field", ["hidden_size", "model_type", "layer_types"])
def test_a_deep_value_is_refused_by_field(field: str) -> None:
    deep: list[Any] = []
    for _ in range(2 * sys.getrecursionlimit()):
        deep = [deep]

    def read() -> None:
        reader = ConfigReader(LLAMA | {field: deep}, "config")
        reader.architecture()
        reader.sizes()
        reader.sliding_window(2)

    with pytest.raises(ServiceError) as refusal:
        read()
    assert refusal.value.violations[0].field == f"config.{field}"


@pytest.mark.parametrize(
    ("name", "hint"), [("lama", "did you mean llama?"), ("olmo9", ""), ("gemma4_text", "")]
)
def test_only_a_misspelt_architecture_gets_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ServiceError) as refusal:
        model_from_config(json.dumps(LLAMA | {"model_type": name}))
    fix = refusal.value.violations[0].fix
    assert hint in fix
    assert "supported are" in fix
    assert hint or "did you mean" not in fix


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_type": None}, "model_type"),
        ({"model_type": "lama"}, "model_type"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"model_type": "gemma2"}, "model_type"),
        ({"model_type": "mixtral"}, "model_type"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"vision_config": {"a": 1}}, "vision_config"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"hidden_size": 64.5}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": 65}, "hidden_size"),
        ({"hidden_size": 10**9}, "hidden_size"),
        ({"intermediate_size": None}, "intermediate_size"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": 1, "hidden_size": 512}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_key_value_heads": 8}, "num_key_value_heads"),
        ({"head_dim": 512}, "head_dim"),
        ({"vocab_size": None}, "vocab_size"),
        ({"max_position_embeddings": -1}, "max_position_embeddings"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"model_type": "gemma3_text", "hidden_activation": {"name": "silu"}},
         "hidden_activation"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types"),
        ({"layer_types": SLIDING}, "layer_types"),
        ({"model_type": "mistral", "num_key_value_heads": 4, "layer_types": FULL},
         "layer_types"),
        ({"model_type": "qwen2", "num_key_value_heads": 4, "layer_types": SLIDING},
         "layer_types"),
        ({"model_type": "smollm3", "use_sliding_window": True}, "use_sliding_window"),
        ({"model_type": "gemma3_text", "final_logit_softcapping": 30.0},
         "final_logit_softcapping"),
        ({"model_type": "gpt_neox", "num_key_value_heads": 2}, "num_key_value_heads"),
        ({"model_type": "gpt_neox", "head_dim": 32}, "head_dim"),
        ({"model_type": "stablelm", "num_key_value_heads": 4, "head_dim": 32}, "head_dim"),
        ({"head_dim": 15}, "head_dim"),
        ({"is_causal": False}, "is_causal"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"per_layer_config": {"1": {"intermediate_size": 8}}}, "per_layer_config"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"architectures": ["LlamaModel"]}, "architectures"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types[1]"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True},
         "use_bidirectional_attention"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"model_type": "stablelm", "qk_layernorm": True}, "qk_layernorm"),
        ({"model_type": "gpt_neox", "use_parallel_residual": False}, "use_parallel_residual"),
    ],
)  # fmt: skip
def test_a_wrong_config_is_refused_by_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ServiceError) as refusal:
        model_from_config(json.dumps(LLAMA | change))
    violation = refusal.value.violations[0]
    assert violation.field == f"model.config_json.{field}"
    assert violation.fix


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"llama"', "[" * 100_000])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ServiceError, match=r"model\.config_json"):
        model_from_config(text)


def test_a_long_value_is_not_repeated_in_the_error() -> None:
    for field in ("model_type", "hidden_size", "tie_word_embeddings", "hidden_act", "layer_types"):
        with pytest.raises(ServiceError) as refusal:
            model_from_config(json.dumps(LLAMA | {field: "9" * 100_000}))
        assert len(str(refusal.value)) < 500


@pytest.mark.parametrize("name", ["a\x1b[31m/b", "a/b\n", "../models", "/root", "~/model", "a/"])
def test_what_is_no_hub_id_is_no_name(name: str) -> None:
    shape = model_from_config(json.dumps(LLAMA | {"_name_or_path": name}))
    assert shape.display_name == "llama model from config.json"
    assert not shape.weights.hub_id
    named = model_from_config(json.dumps(LLAMA | {"_name_or_path": "Qwen/Qwen2.5-0.5B"}))
    assert named.display_name == named.weights.hub_id == "Qwen/Qwen2.5-0.5B"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
FIELDS = sorted(
    {*LLAMA, "head_dim", "num_key_value_heads", "hidden_act", "hidden_activation", "layer_types",
     "sliding_window", "sliding_window_pattern", "use_sliding_window", "max_window_layers",
     "tie_word_embeddings", "attention_bias", "_name_or_path", "text_config"}
)  # fmt: skip


@given(
    family=st.sampled_from(sorted(architectures())),
    changes=st.dictionaries(st.sampled_from(FIELDS), ANYTHING | st.integers(1, 300), max_size=4),
)
@settings(deadline=None, max_examples=300)
def test_any_config_is_read_or_refused_by_field(family: str, changes: dict[str, Any]) -> None:
    config = LLAMA | {"model_type": family} | changes
    violations: list[FieldViolation] = []
    try:
        shape = model_from_config(json.dumps(config))
    except ServiceError as refusal:
        violations += refusal.violations
    for violation in violations:
        assert violation.field.startswith("model.config_json.")
        assert violation.fix
    if violations:
        return
    assert shape.parameter_count > 0
    assert 0 <= shape.windowed_layer_count <= shape.layer_count
    verdicts = plan(load_ladder(), shape, machine(), Constraints()).verdicts
    assert all(verdict.fits or verdict.remedy for verdict in verdicts)


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"model_type": "olmo3", "sliding_window": None}, "sliding_window"),
        ({"model_type": "cohere2", "sliding_window": None, "layer_types": FULL}, "sliding_window"),
        ({"model_type": "exaone4", "sliding_window": None}, "sliding_window"),
        ({"model_type": "hunyuan_v1_dense"}, "head_dim"),
        ({"model_type": "helium"}, "head_dim"),
        ({"model_type": "nemotron"}, "num_key_value_heads"),
    ],
)
def test_a_config_that_its_class_fails_on_is_refused_by_field(
    fields: dict[str, object], missing: str
) -> None:
    heads = {} if missing == "num_key_value_heads" else {"num_key_value_heads": 4}
    config = json.dumps(LLAMA | heads | fields)
    with pytest.raises(ServiceError, match=rf"model\.config_json\.{missing}: is (None|missing), "):
        model_from_config(config)


def test_a_window_that_nothing_has_may_be_none_where_the_class_bears_it() -> None:
    fields = {"model_type": "exaone4", "sliding_window": None, "layer_types": FULL}
    shape = model_from_config(json.dumps(LLAMA | fields | {"num_key_value_heads": 4}))
    assert (shape.windowed_layer_count, shape.sliding_window) == (0, 0)
