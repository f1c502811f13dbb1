"""Models: from the text of a config.json to the shape that memory and time follow from.

Sizes a config leaves out are never guessed: the five main ones must be there, the rest take the
defaults of transformers' own config classes. Parameter counts are exact.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from services.common.errors import ErrorReason, invalid_field
from services.planner.architectures import Architecture, Norm, QueryKeyNorm
from services.planner.config_reader import ConfigReader
from services.planner.tables import table

MODEL_ID_FIELD = "model.model_id"
CONFIG_FIELD = "model.config_json"
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear module of one decoder layer: `outputs` x `inputs` weights."""

    name: str
    inputs: int
    outputs: int
    bias: bool

    @property
    def weight_count(self) -> int:
        """Weights without the bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Where weights come from: a hub id, or a file inside an installed distribution."""

    hub_id: str = ""
    distribution: str = ""
    file: str = ""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Everything about a model that the planner's formulas read. Sizes are element counts."""

    model_id: str
    display_name: str
    weights: WeightSource
    architecture: Architecture
    layer_count: int
    hidden_size: int
    intermediate_size: int
    query_head_count: int
    key_value_head_count: int
    head_size: int
    vocabulary_size: int
    max_position_embeddings: int
    tied_embeddings: bool
    activation: str
    sliding_window: int
    # Of every layer; one with fewer layers has the first of them.
    windowed: tuple[bool, ...]
    linears: tuple[Linear, ...]

    def with_key_value_heads(self, heads: int) -> ModelShape:
        """The model converted to so many key-value heads by mean pooling; 0 leaves it."""
        if heads in (0, self.key_value_head_count):
            return self
        width = {"k_proj": heads, "v_proj": heads}
        linears = tuple(
            replace(linear, outputs=width[linear.name] * self.head_size)
            if linear.name in width
            else linear
            for linear in self.linears
        )
        return replace(self, key_value_head_count=heads, linears=linears)

    @property
    def convertible_key_value_heads(self) -> int:
        """Heads a model without grouped queries can be converted to: one in eight, or 0."""
        split = {"k_proj", "v_proj"} <= {linear.name for linear in self.linears}
        full = self.key_value_head_count == self.query_head_count
        return self.query_head_count // 8 if split and full and not self.query_head_count % 8 else 0

    @property
    def windowed_layer_count(self) -> int:
        """Layers that attend to a window only."""
        return sum(self.windowed[: self.layer_count])

    @property
    def last_layer_windowed(self) -> bool:
        """True when the last layer attends to a window only."""
        return self.windowed[self.layer_count - 1]

    def reads_at_most(self, tokens: int) -> bool:
        """True when a sliding window is shorter than `tokens`."""
        return self.windowed_layer_count > 0 and self.sliding_window < tokens

    @property
    def query_width(self) -> int:
        """Channels of all query heads."""
        return self.query_head_count * self.head_size

    @property
    def key_value_width(self) -> int:
        """Channels of all key heads; values have as many."""
        return self.key_value_head_count * self.head_size

    @property
    def layer_linear_weights(self) -> int:
        """Weights of the linears of one layer, biases left out."""
        return sum(linear.weight_count for linear in self.linears)

    @property
    def linear_weights(self) -> int:
        """Weights of the linears of all decoder layers: what NF4 quantises."""
        return self.layer_count * self.layer_linear_weights

    @property
    def unread_linears(self) -> tuple[Linear, ...]:
        """Linears that only add to the layer's output: a recompute for backward leaves them out."""
        if self.architecture.norm_after_mlp:
            return ()
        rows = zip(self.architecture.linears, self.linears, strict=True)
        adding = tuple(linear for row, linear in rows if row.outputs == "hidden")
        # Beside each other both only add; else the MLP reads what attention adds.
        return adding if self.architecture.parallel else adding[-1:]

    @property
    def largest_linear_weights(self) -> int:
        """Weights of the largest linear of a decoder layer."""
        return max(linear.weight_count for linear in self.linears)

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token embedding."""
        return self.vocabulary_size * self.hidden_size

    @property
    def head_parameters(self) -> int:
        """Parameters of the language-model head; 0 when it shares the embedding."""
        bias = self.vocabulary_size if self.architecture.head_bias else 0
        return bias if self.tied_embeddings else self.embedding_parameters + bias

    @property
    def parameter_count(self) -> int:
        """All parameters of the model, shared ones once."""
        outside = self._norm_parameters() + self.embedding_parameters + self.head_parameters
        return self.layer_count * self.layer_parameters + outside

    @property
    def layer_parameters(self) -> int:
        """All parameters of one decoder layer: linears, their biases, norms."""
        norms = self._layer_norm_parameters() + self._query_key_norm_parameters()
        biases = sum(linear.outputs for linear in self.linears if linear.bias)
        return self.layer_linear_weights + biases + norms

    def lora_parameters(self, rank: int) -> int:
        """Parameters of adapters of this rank on every linear of every layer."""
        return self.layer_count * rank * sum(x.inputs + x.outputs for x in self.linears)

    def _norm_parameters(self) -> int:
        has_bias = self.architecture.norm is Norm.LAYER
        return self.hidden_size * (2 if has_bias else 1)

    def _layer_norm_parameters(self) -> int:
        return self.architecture.norm_count * self._norm_parameters()

    def _query_key_norm_parameters(self) -> int:
        return {
            QueryKeyNorm.NONE: 0,
            QueryKeyNorm.HEAD: 2 * self.head_size,
            QueryKeyNorm.FULL: self.query_width + self.key_value_width,
        }[self.architecture.query_key_norm]


@cache
def catalogue() -> Mapping[str, ModelShape]:
    """All models of the catalogue by id."""
    return {row["id"]: _catalogue_model(row) for row in table("models")["models"]}


def catalogue_id(name: str) -> str | None:
    """The id of the catalogue's model that goes by a name: its id, or the hub's in any case."""
    for row in table("models")["models"]:
        if name == row["id"] or name.lower() == row["weights"].get("hub_id", row["id"]).lower():
            return str(row["id"])
    return None


def model_by_id(model_id: str) -> ModelShape:
    """The catalogue's model, by its id or the hub's.

    Raises `ServiceError` naming `model.model_id`, with close matches.
    """
    found = catalogue_id(model_id)
    if found is not None:
        return _catalogue_row(found)
    known = [row["id"] for row in table("models")["models"]]
    close = difflib.get_close_matches(model_id.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise invalid_field(
        MODEL_ID_FIELD,
        f"{model_id!r} is not in the catalogue",
        f"{hint}ListModels has all ids; any other model goes by its config.json",
        reason=ErrorReason.NOT_FOUND,
    )


def model_from_config(text: str, field: str = CONFIG_FIELD) -> ModelShape:
    """Reads a config.json. Raises `ServiceError` naming the field that is wrong, and the fix."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = f"is not JSON ({str(error)[:120]})"
        raise invalid_field(field, problem, "give the text of the model's config.json") from error
    if not isinstance(config, dict):
        raise invalid_field(field, "is not a JSON object", "give the model's config.json")
    name = config.get("_name_or_path")
    source = WeightSource(hub_id=_hub_id(name))
    display_name = source.hub_id or f"{config.get('model_type')} model from config.json"
    return _shape(ConfigReader(config, field), "", display_name, source)


def _hub_id(name: object) -> str:
    """A hub id as `owner/name`, or nothing: older configs carry local paths there."""
    is_id = isinstance(name, str) and len(name) <= 256 and _HUB_ID.fullmatch(name)
    return str(name) if is_id else ""


@cache
def _catalogue_row(model_id: str) -> ModelShape:
    """One model, without building the others: a fresh process plans for one."""
    rows = table("models")["models"]
    return next(_catalogue_model(row) for row in rows if row["id"] == model_id)


def _catalogue_model(row: Mapping[str, Any]) -> ModelShape:
    reader = ConfigReader(row["config"], f"models.yaml: {row['id']}")
    return _shape(reader, row["id"], row["display_name"], WeightSource(**row["weights"]))


def _shape(
    reader: ConfigReader, model_id: str, display_name: str, weights: WeightSource
) -> ModelShape:
    architecture = reader.architecture()
    sizes = reader.sizes()
    windowed, window = reader.sliding_window(sizes["layer_count"])
    widths = _widths(sizes)
    linears = tuple(
        Linear(row.name, widths[row.inputs], widths[row.outputs], reader.flag(row.bias))
        for row in architecture.linears
    )
    return ModelShape(
        model_id=model_id,
        display_name=display_name,
        weights=weights,
        architecture=architecture,
        **sizes,
        tied_embeddings=reader.flag("tie_word_embeddings"),
        activation=reader.activation(),
        sliding_window=window,
        windowed=windowed,
        linears=linears,
    )


def _widths(sizes: Mapping[str, int]) -> Mapping[str, int]:
    query = sizes["query_head_count"] * sizes["head_size"]
    key_value = sizes["key_value_head_count"] * sizes["head_size"]
    return {
        "hidden": sizes["hidden_size"],
        "intermediate": sizes["intermediate_size"],
        "twice_intermediate": 2 * sizes["intermediate_size"],
        "query": query,
        "key_value": key_value,
        "query_key_value": query + 2 * key_value,
    }
