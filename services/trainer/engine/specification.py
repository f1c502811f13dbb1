"""Reads what to do: the plan, the run's specification, and the defaults of both."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from services.common.errors import ServiceError
from services.common.validation import validate
from services.trainer.engine.failures import INTERNAL, EngineError

# Defaults of the optional fields, as trainer.proto states them.
DEFAULT_LEARNING_RATE = 2e-4
DEFAULT_WEIGHT_DECAY = 0.0
DEFAULT_MAX_GRADIENT_NORM = 1.0
DEFAULT_EVALUATION_WINDOWS = 4
DEFAULT_HELD_OUT_FRACTION = 0.05
DEFAULT_CHECKPOINT_EVERY_SECONDS = 600


@dataclass(frozen=True)
class Training:
    """`TrainingSettings` with every default filled in."""

    steps: int
    learning_rate: float = DEFAULT_LEARNING_RATE
    warmup_steps: int = 0
    gradient_accumulation_steps: int = 1
    weight_decay: float = DEFAULT_WEIGHT_DECAY
    max_gradient_norm: float = DEFAULT_MAX_GRADIENT_NORM
    seed: int = 0
    checkpoint_every_steps: int = 0
    checkpoint_every_seconds: int = DEFAULT_CHECKPOINT_EVERY_SECONDS
    evaluation_windows: int = DEFAULT_EVALUATION_WINDOWS
    held_out_fraction: float = DEFAULT_HELD_OUT_FRACTION


@dataclass(frozen=True)
class Specification:
    """One run: the plan it follows, its data, its model and its training settings."""

    plan: planner_pb2.Plan
    data: trainer_pb2.DataSource
    model_path: str
    training: Training

    @property
    def window_tokens(self) -> int:
        """Tokens of one training window, context and target."""
        return int(self.plan.context_tokens + self.plan.target_tokens)


def read_specification(
    plan_path: Path,
    spec_path: Path | None,
    *,
    data_path: str = "",
    steps: int = 0,
    model_path: str = "",
) -> Specification:
    """Reads plan and spec; `data_path`, `steps` and `model_path`, where given, go before the spec.

    The plan file holds a `Plan` or a whole `PlanResponse`. Raises `EngineError` naming the file and
    the field that is missing, unknown or out of range.
    """
    spec = trainer_pb2.RunSpec()
    if spec_path:
        _parse(_read_json(spec_path), spec, spec_path)
    if data_path:
        spec.data.path = data_path
    if steps:
        spec.training.steps = steps
    if model_path:
        spec.model_path = model_path
    spec.plan.CopyFrom(_read_plan(plan_path))
    try:
        validate(spec)
    except ServiceError as error:
        raise EngineError(INTERNAL, f"the run cannot start: {error.message}") from error
    training = _with_defaults(spec)
    if training.warmup_steps >= training.steps:
        problem = f"training.warmup_steps is {training.warmup_steps}"
        raise EngineError(INTERNAL, problem, f"give fewer than training.steps ({training.steps})")
    return Specification(spec.plan, spec.data, spec.model_path, training)


def _read_plan(path: Path) -> planner_pb2.Plan:
    fields = _read_json(path)
    if "tiers" in fields or "chosen" in fields:  # a PlanResponse
        if not fields.get("chosen"):
            raise EngineError(INTERNAL, f"{path}: no tier fits", "`tiers` in the file says why")
        fields = fields["chosen"]
    plan = planner_pb2.Plan()
    _parse(fields, plan, path)
    return plan


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EngineError(INTERNAL, f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise EngineError(INTERNAL, f"{path} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise EngineError(INTERNAL, f"{path} is not a JSON object")
    return fields


def _parse(fields: dict[str, Any], message: Any, path: Path) -> None:
    try:
        json_format.ParseDict(fields, message)
    except json_format.ParseError as error:
        kind = message.DESCRIPTOR.name
        raise EngineError(INTERNAL, f"{path} is not the JSON of a {kind}: {error}") from error


def _with_defaults(spec: trainer_pb2.RunSpec) -> Training:
    given = spec.training
    chosen = {
        name: getattr(given, name)
        for name in (
            "learning_rate",
            "weight_decay",
            "max_gradient_norm",
            "evaluation_windows",
            "checkpoint_every_seconds",
        )
        if given.HasField(name)
    }
    if spec.data.HasField("held_out_fraction"):
        chosen["held_out_fraction"] = spec.data.held_out_fraction
    return Training(
        steps=given.steps,
        warmup_steps=given.warmup_steps,
        gradient_accumulation_steps=given.gradient_accumulation_steps or 1,
        seed=given.seed,
        checkpoint_every_steps=given.checkpoint_every_steps,
        **chosen,
    )
