"""Reads what a run shall do: the plan and the run's specification, both protobuf JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from services.common.errors import ServiceError
from services.common.validation import validate
from services.trainer.engine.failures import RunFailure


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """`TrainingSettings` with every default filled in."""

    steps: int
    learning_rate: float
    warmup_steps: int
    gradient_accumulation_steps: int
    weight_decay: float
    max_gradient_norm: float
    seed: int
    checkpoint_every_steps: int
    evaluation_windows: int


def _or(settings: trainer_pb2.TrainingSettings, name: str, default: float) -> float:
    value: float = getattr(settings, name) if settings.HasField(name) else default
    return value


def training_options(settings: trainer_pb2.TrainingSettings) -> TrainingOptions:
    """The settings a run is made with; the defaults are those the proto names."""
    return TrainingOptions(
        steps=settings.steps,
        learning_rate=_or(settings, "learning_rate", 2e-4),
        warmup_steps=settings.warmup_steps,
        gradient_accumulation_steps=settings.gradient_accumulation_steps or 1,
        weight_decay=_or(settings, "weight_decay", 0.0),
        max_gradient_norm=_or(settings, "max_gradient_norm", 1.0),
        seed=settings.seed,
        checkpoint_every_steps=settings.checkpoint_every_steps,
        evaluation_windows=int(_or(settings, "evaluation_windows", 4)),
    )


def read_plan(path: Path) -> planner_pb2.Plan:
    """A `Plan`, or the plan a `PlanResponse` has chosen. Raises `RunFailure`."""
    document = _read_json(path)
    if "chosen" in document or "tiers" in document:
        if not document.get("chosen"):
            raise _unusable(path, "its planner found no tier that fits, so there is nothing to run")
        document = document["chosen"]
    plan = planner_pb2.Plan()
    try:
        json_format.ParseDict(document, plan, ignore_unknown_fields=True)
        validate(plan)
    except (json_format.ParseError, ServiceError) as error:
        raise _unusable(path, str(error)) from error
    return plan


def read_run_spec(path: Path) -> trainer_pb2.RunSpec:
    """A `RunSpec`; its plan may be absent. Raises `RunFailure`."""
    document = _read_json(path)
    document.pop("plan", None)
    spec = trainer_pb2.RunSpec()
    try:
        json_format.ParseDict(document, spec, ignore_unknown_fields=True)
        validate(spec.data)
        validate(spec.training)
    except (json_format.ParseError, ServiceError) as error:
        raise _unusable(path, str(error)) from error
    return spec


def _read_json(path: Path) -> dict[str, object]:
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise _unusable(path, f"it is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise _unusable(path, "it is not a JSON object")
    return document


def _unusable(path: Path, why: str) -> RunFailure:
    return RunFailure(trainer_pb2.FAILURE_CAUSE_INTERNAL, f"{path} cannot be used: {why}")
