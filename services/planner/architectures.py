"""How decoder layers are built, by `model_type`: a data table (`data/architectures.yaml`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
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
    norms_after_projections: bool = False
    partial_rotary: bool = False
    rotary_float32: bool = False
    rotates_in_float32: bool = False
    interleaved_rotary: bool = False
    rotary_tables: int = 1
    scaled_embeddings: bool = False
    head_bias: bool = False
    sliding_window: str = ""
    needs_window: bool = False
    needs: tuple[str, ...] = ()
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


_OPTIONAL = tuple(
    one.name for one in fields(Architecture)
    if one.default is not MISSING or one.default_factory is not MISSING
)  # fmt: skip


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
    return Architecture(
        model_type=name,
        norm=Norm(row["norm"]),
        norms=NormPlaces(row["norms"]),
        query_key_norm=QueryKeyNorm(row["query_key_norm"]),
        fused_query_key_value=row["query_key_value"] == "fused",
        mlp=Mlp(row["mlp"]),
        linears=tuple(LinearRow(*linear) for linear in row["linears"]),
        defaults=row["defaults"],
        **{name: row[name] for name in _OPTIONAL if name in row},
    )
