"""What a plan and its training settings must agree on, beyond the ranges in the proto."""

from __future__ import annotations

from collections.abc import Iterator

from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2
from elite.trainer.v1 import trainer_pb2
from services.common.errors import FieldViolation, invalid_fields
from services.trainer.jobs.identifiers import HUB_ID

_TAKE_THE_PLAN = "take the plan from PlannerService.Plan, unchanged"

# Without these the model cannot be what the plan was made for.
_MODEL_SIZES = (
    "layer_count",
    "hidden_size",
    "query_head_count",
    "key_value_head_count",
    "vocabulary_size",
)


def check_plan(spec: trainer_pb2.RunSpec) -> None:
    """Raises `ServiceError` naming every field that contradicts another."""
    violations = [*_training(spec.training), *_model(spec), *_execution(spec.plan)]
    if violations:
        raise invalid_fields(violations)


def _training(training: trainer_pb2.TrainingSettings) -> Iterator[FieldViolation]:
    if training.warmup_steps >= training.steps:
        problem = f"is {training.warmup_steps}, and spec.training.steps is {training.steps}"
        yield FieldViolation("spec.training.warmup_steps", problem, "fewer than steps")


def _model(spec: trainer_pb2.RunSpec) -> Iterator[FieldViolation]:
    model = spec.plan.model
    for name in _MODEL_SIZES:
        if not getattr(model, name):
            yield FieldViolation(f"spec.plan.model.{name}", "is missing", _TAKE_THE_PLAN)
    groups = model.key_value_head_count
    if groups and model.query_head_count % groups:
        problem = f"is {groups}, which does not divide {model.query_head_count} query heads"
        yield FieldViolation("spec.plan.model.key_value_head_count", problem, _TAKE_THE_PLAN)
    weights = model.weights
    if weights.hub_id and not HUB_ID.fullmatch(weights.hub_id):
        problem = f"is {weights.hub_id[:80]!r}, which is no id of the hub"
        fix = "OWNER/NAME; a folder goes into spec.model_path"
        yield FieldViolation("spec.plan.model.weights.hub_id", problem, fix)
    if not spec.model_path and not (weights.hub_id or weights.package.distribution):
        problem = "is missing, and the plan's model does not say where its weights are"
        fix = "the folder of the model, in Hugging Face format, on the trainer's machine"
        yield FieldViolation("spec.model_path", problem, fix)


def _execution(plan: planner_pb2.Plan) -> Iterator[FieldViolation]:
    execution = plan.execution
    if execution.layer_inputs.placement != planner_pb2.PLACEMENT_HOST:
        return
    field = "spec.plan.execution.layer_inputs.placement"
    if execution.checkpoint_policy == planner_pb2.CHECKPOINT_POLICY_NONE:
        problem = "is PLACEMENT_HOST without CHECKPOINT_POLICY_EVERY_LAYER"
        yield FieldViolation(field, problem, _TAKE_THE_PLAN)
    elif plan.device_kind == profiler_pb2.DEVICE_KIND_CPU:
        problem = "is PLACEMENT_HOST, but the device is the host's own processor"
        yield FieldViolation(field, problem, _TAKE_THE_PLAN)
