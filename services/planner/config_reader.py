"""Reads the fields of a config.json, and refuses what the planner cannot vouch for."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from services.common.errors import ServiceError, invalid_field
from services.planner.architectures import Architecture, architectures, refusals

# Activation functions whose memory is known: fused kernels that keep their input only, and
# gelu_new, which transformers writes out in five operations.
ACTIVATIONS = frozenset({"silu", "swish", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu2"})

_LARGEST: Mapping[str, int] = {
    "num_hidden_layers": 1024,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 19,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 256,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 30,
}
_LONGEST_SHOWN = 60
# How alike a name must be to be a misspelling: families are named after one another.
_MISSPELT = 0.85
# By rule, which of every four layers has no window.
_FULL_OF_FOUR: Mapping[str, int] = {"but_first_of_four": 0, "but_last_of_four": 3}
_LAYER_TYPES = ("full_attention", "sliding_attention")
_MIXTURE_FIELDS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_MULTIMODAL_FIELDS = ("vision_config", "audio_config", "text_config")
# What transformers does to a model of any architecture, and no formula has.
_REFUSED_FIELDS: Mapping[str, str] = {
    "per_layer_config": "layers that are not alike",
    "use_bidirectional_attention": "attention to what comes later",
}
_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


class ConfigReader:
    """One config.json, with `field` as its path in the request for error messages."""

    def __init__(self, config: Mapping[str, Any], field: str) -> None:
        self._config = config
        self._field = field
        self._architecture: Architecture | None = None

    def architecture(self) -> Architecture:
        """The table's row for this config. Raises `ServiceError` for an unsupported one."""
        model_type = self._config.get("model_type")
        found = architectures().get(model_type) if isinstance(model_type, str) else None
        if found is None:
            raise self._unsupported(model_type)
        self._architecture = found
        self._refuse_extensions()
        self._refuse_headless()
        for name in found.needs:
            if self._config.get(name) is None:
                problem = f"is missing, and transformers makes no {model_type} without it"
                raise self.error(name, problem, "give the model's whole config.json")
        for name, meaning in found.refuse.items():
            if self._config.get(name, found.defaults.get(name)):
                raise self.error(name, f"asks for {meaning}", "plan for a model without it")
        for name, meaning in found.require.items():
            if not self._config.get(name, found.defaults.get(name)):
                raise self.error(name, f"asks for {meaning}", "plan for a model without it")
        return found

    def sizes(self) -> dict[str, int]:
        """Layer count, widths, head counts, vocabulary and positions."""
        hidden = self._size("hidden_size")
        heads = self._size("num_attention_heads")
        groups = self._key_value_heads(heads)
        if heads % groups:
            problem = f"is {groups}, which does not divide {heads} attention heads"
            raise self.error("num_key_value_heads", problem, "a divisor of num_attention_heads")
        return {
            "layer_count": self._size("num_hidden_layers"),
            "hidden_size": hidden,
            "intermediate_size": self._size("intermediate_size"),
            "query_head_count": heads,
            "key_value_head_count": groups,
            "head_size": self._head_size(hidden, heads),
            "vocabulary_size": self._size("vocab_size"),
            "max_position_embeddings": self._size("max_position_embeddings"),
        }

    def flag(self, name: bool | str) -> bool:
        """A boolean field (or the constant itself), with the architecture's default."""
        if isinstance(name, bool):
            return name
        value = self._value(name)
        if not isinstance(value, bool):
            raise self.error(name, f"is {_shown(value)}", "true or false")
        return value

    def activation(self) -> str:
        """The MLP's activation function."""
        name = self._row.activation_field
        value = self._value(name)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            fix = f"a model with one of {', '.join(sorted(ACTIVATIONS))}"
            raise self.error(name, f"is {_shown(value)}, whose memory is not known", fix)
        return value

    def sliding_window(self, layer_count: int) -> tuple[tuple[bool, ...], int]:
        """Which layers attend to a window only, and how many tokens it has; 0 if none does."""
        named = self._named_windows(layer_count)
        rule = self._row.sliding_window
        switched_on = rule != "flag" or self.flag("use_sliding_window")
        if not rule or not switched_on or self._value("sliding_window") is None:
            self._refuse_no_window(named)
            windowed = (False,) * layer_count
        else:
            windowed = self._windowed_layers(rule, layer_count, named)
        if named is not None and named != windowed:
            problem = (
                f"names other layers with a window than transformers gives {self._row.model_type}"
            )
            raise self.error("layer_types", problem, "leave it out, or plan for another model")
        return windowed, self._size("sliding_window") if any(windowed) else 0

    def _refuse_no_window(self, named: tuple[bool, ...] | None) -> None:
        """Raises `ServiceError` where the class fails without a window, if only an unused one."""
        row = self._row
        if row.needs_window or (row.sliding_window == "pattern" and named is None):
            problem = (
                f"is {_shown(self._value('sliding_window'))}, which {row.model_type} cannot run"
            )
            raise self.error("sliding_window", problem, "give the model's window")

    def error(self, name: str, problem: str, fix: str) -> ServiceError:
        """The error for one field of the config."""
        return invalid_field(f"{self._field}.{name}", problem, fix)

    @property
    def _row(self) -> Architecture:
        assert self._architecture is not None, "architecture() comes first"
        return self._architecture

    def _named_windows(self, layer_count: int) -> tuple[bool, ...] | None:
        """Which layers `layer_types` gives a window, where it is there.

        Raises `ServiceError` for layers that do something else than attend.
        """
        types = self._config.get("layer_types")
        if types is None:
            return None
        if not isinstance(types, list) or len(types) != layer_count:
            problem = f"is {_shown(types)}, which does not name {layer_count} layers"
            raise self.error("layer_types", problem, "one kind for every layer, or leave it out")
        for index, kind in enumerate(types):
            if kind not in _LAYER_TYPES:
                problem = f"is {_shown(kind)}, whose memory is not known"
                fix = f"a model with {' and '.join(_LAYER_TYPES)} only"
                raise self.error(f"layer_types[{index}]", problem, fix)
        return tuple(kind == "sliding_attention" for kind in types)

    def _windowed_layers(
        self, rule: str, layer_count: int, named: tuple[bool, ...] | None
    ) -> tuple[bool, ...]:
        if named is not None and rule != "always":
            return named
        if rule == "pattern":
            every = self._size("sliding_window_pattern")
            return tuple(layer % every != 0 for layer in range(1, layer_count + 1))
        if rule == "flag":
            below = self._size("max_window_layers", smallest=0)
            return tuple(layer >= below for layer in range(layer_count))
        full = _FULL_OF_FOUR.get(rule, -1)
        return tuple(layer % 4 != full for layer in range(layer_count))

    def _key_value_heads(self, heads: int) -> int:
        if self._row.groups_heads:
            return self._size("num_key_value_heads", heads)
        self._refuse_other("num_key_value_heads", heads)
        return heads

    def _head_size(self, hidden: int, heads: int) -> int:
        size = self._any_head_size(hidden, heads)
        if size % 2:
            problem = f"gives heads of {size} channels, which rotary embeddings cannot halve"
            raise self.error("head_dim", problem, "an even number")
        return size

    def _any_head_size(self, hidden: int, heads: int) -> int:
        if self._row.sizes_heads and self._value("head_dim") is not None:
            return self._size("head_dim")
        self._refuse_other("head_dim", hidden // heads)
        if hidden % heads:
            problem = f"is {hidden}, which {heads} attention heads do not divide"
            raise self.error("hidden_size", problem, "a multiple, or give head_dim")
        if hidden // heads > _LARGEST["head_dim"]:
            problem = f"gives heads of {hidden // heads} channels over {heads} heads"
            raise self.error("num_attention_heads", problem, "attention kernels end at 256")
        return hidden // heads

    def _value(self, name: str) -> Any:
        if name in self._config:
            return self._config[name]
        return self._row.defaults.get(name)

    def _refuse_other(self, name: str, read: int) -> None:
        """Raises `ServiceError` for a field that this architecture does not have, and denies."""
        value = self._config.get(name)
        if value is not None and value != read:
            problem = (
                f"is {_shown(value)}, which {self._row.model_type} does not read: it has {read}"
            )
            raise self.error(name, problem, "leave it out")

    def _size(self, name: str, default: int | None = None, smallest: int = 1) -> int:
        value = self._value(name)
        if value is None:
            value = default
        if value is None:
            fix = "give the model's whole config.json, with what its class takes by default"
            raise self.error(name, "is missing", fix)
        largest = _LARGEST.get(name, 1 << 30)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not smallest <= value <= largest:
            fix = f"a whole number from {smallest} to {largest}"
            raise self.error(name, f"is {_shown(value)}", fix)
        return int(value)

    def _refuse_extensions(self) -> None:
        for name in _MIXTURE_FIELDS:
            if self._config.get(name):
                raise self.error(name, "makes it a mixture of experts", "plan for a dense model")
        for name in _MULTIMODAL_FIELDS:
            if self._config.get(name):
                fix = "give the config of its text model alone"
                raise self.error(name, "makes it multimodal", fix)
        for name, meaning in _REFUSED_FIELDS.items():
            if self._config.get(name):
                raise self.error(name, f"asks for {meaning}", "plan for a model without it")
        if self._config.get("is_causal", True) is False:
            raise self.error("is_causal", "is false", "plan for a causal language model")
        if self._config.get("quantization_config"):
            fix = "plan for the original model; NF4 is the planner's to choose"
            raise self.error("quantization_config", "says the weights are quantised already", fix)

    def _refuse_headless(self) -> None:
        """A checkpoint of another kind has no head, unless that is the embedding."""
        names = self._config.get("architectures")
        if not isinstance(names, list) or not names or self.flag("tie_word_embeddings"):
            return
        if not any(isinstance(name, str) and name.endswith(_WITH_HEAD) for name in names):
            problem = f"is {_shown(names)}: its checkpoint has no language-model head"
            raise self.error("architectures", problem, "plan for a causal language model")

    def _unsupported(self, model_type: object) -> ServiceError:
        if model_type is None:
            return self.error("model_type", "is missing", "give the model's whole config.json")
        reason = refusals().get(model_type) if isinstance(model_type, str) else None
        if reason:
            return self.error(
                "model_type", f"{model_type} is not supported: {reason}", _supported()
            )
        shown = _shown(model_type)
        close = _misspelt(shown.strip("'"))
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        return self.error("model_type", f"is {shown}, which is not supported", hint + _supported())


# Of what a caller sent, however deep.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _LONGEST_SHOWN


def _misspelt(name: str) -> list[str]:
    """Supported names that were meant; another version's (olmo2, olmo3) was not."""
    close = difflib.get_close_matches(name, architectures(), n=2, cutoff=_MISSPELT)
    return [known for known in close if _unversioned(known) != _unversioned(name)]


def _unversioned(name: str) -> str:
    return re.sub(r"[\d_.]+(text)?", "", name)


def _shown(value: object) -> str:
    """A value in an error message, which is no place for the whole of a long one."""
    text = _SHORT.repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _supported() -> str:
    return f"supported are {', '.join(architectures())}"
