"""How decoder layers are built, by `model_type`: a data table (`data/architectures.yaml`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any

from services.planner.tables import table


class Norm(Enum):
    """Kind of normalisation. It decides what backward keeps."""

    RMS = "rms"
    LAYER = "layer"
    LAYER_FLOAT32 = "layer_float32"


class NormPlaces(Enum):
    """Where a layer normalises."""

    PRE = "pre"
    POST = "post"
    BOTH = "both"
    PARALLEL = "parallel"
    PARALLEL_TWO = "parallel_two"


class QueryKeyNorm(Enum):
    """Normalisation of queries and keys: none, per head, or over all channels."""

    NONE = "none"
    HEAD = "head"
    FULL = "full"


class Mlp(Enum):
    """Shape of the MLP."""

    GATED = "gated"
    GATED_FUSED = "gated_fused"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class LinearRow:
    """A linear of a decoder layer; widths by name, bias fixed or by config field."""

    name: str
    inputs: str
    outputs: str
    bias: bool | str


@dataclass(frozen=True, slots=True)
class Architecture:
    """One row of the table; data/architectures.yaml explains the fields."""

    model_type: str
    norm: Norm
    norms: NormPlaces
    query_key_norm: QueryKeyNorm
    fused_query_key_value: bool
    mlp: Mlp
    linears: tuple[LinearRow, ...]
    defaults: Mapping[str, Any]
    partial_rotary: bool = False
    rotary_float32: bool = False
    rotary_tables: int = 1
    scaled_embeddings: bool = False
    head_bias: bool = False
    sliding_window: str = ""
    activation_field: str = "hidden_act"
    groups_heads: bool = True
    sizes_heads: bool = True
    refuse: Mapping[str, str] = field(default_factory=dict)
    require: Mapping[str, str] = field(default_factory=dict)

    @property
    def norm_count(self) -> int:
        """Hidden-wide norms in one layer."""
        return {NormPlaces.BOTH: 4, NormPlaces.PARALLEL: 1}.get(self.norms, 2)

    @property
    def norm_after_mlp(self) -> bool:
        """True when the MLP's output is normalised before it joins the residual."""
        return self.norms in (NormPlaces.POST, NormPlaces.BOTH)

    @property
    def parallel(self) -> bool:
        """True when attention and MLP read the same input."""
        return self.norms in (NormPlaces.PARALLEL, NormPlaces.PARALLEL_TWO)


@cache
def architectures() -> Mapping[str, Architecture]:
    """All supported architectures by `model_type`."""
    rows = table("architectures")
    return {name: _architecture(name, row) for name, row in rows.items() if name != "refused"}


def refusals() -> Mapping[str, str]:
    """Architectures that are known and not supported, with the reason."""
    reasons: Mapping[str, str] = table("architectures")["refused"]
    return reasons


def _architecture(name: str, row: Mapping[str, Any]) -> Architecture:
    optional = ("partial_rotary", "rotary_float32", "rotary_tables", "scaled_embeddings",
                "head_bias", "sliding_window", "activation_field", "groups_heads", "sizes_heads",
                "refuse", "require")  # fmt: skip
    return Architecture(
        model_type=name,
        norm=Norm(row["norm"]),
        norms=NormPlaces(row["norms"]),
        query_key_norm=QueryKeyNorm(row["query_key_norm"]),
        fused_query_key_value=row["query_key_value"] == "fused",
        mlp=Mlp(row["mlp"]),
        linears=tuple(LinearRow(*linear) for linear in row["linears"]),
        defaults=row["defaults"],
        **{key: row[key] for key in optional if key in row},
    )
