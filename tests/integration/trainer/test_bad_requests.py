"""Every bad input of CreateRun: a clear error names field and fix; nothing half-done is left."""

# Each way to spoil a request takes the stack, whether it needs it or not.
# ruff: noqa: ARG001

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2
from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs import keys
from tests.support.refusals import refused
from tests.support.run_specs import CONTEXT_TOKENS, TARGET_TOKENS, a_spec
from tests.support.trainer_stack import TrainerStack

Spec = trainer_pb2.RunSpec
PLANNED = trainer_pb2.RUN_STATE_PLANNED


def everything_stored(stack: TrainerStack) -> tuple[int, int, list[str]]:
    with stack.valkey.client() as client:
        run_folders = os.listdir(stack.runs_directory) if stack.runs_directory.exists() else []
        return client.zcard(keys.ALL_RUNS), client.llen(keys.queue_name("cpu")), run_folders


def model_folder(stack: TrainerStack, name: str, **changes: object) -> Path:
    folder = stack.folder / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


# Each bends a good request and names the field that must be reported, and a part of what is said.
BAD_SPECS: dict[str, tuple[Callable[[TrainerStack, Spec], object], str, str]] = {}


def bad(field: str, text: str) -> Callable[[Callable[[TrainerStack, Spec], object]], object]:
    def register(bend: Callable[[TrainerStack, Spec], object]) -> object:
        BAD_SPECS[bend.__name__] = (bend, field, text)
        return bend

    return register


@bad("spec.data.path", "does not exist")
def missing_data(stack: TrainerStack, spec: Spec) -> None:
    spec.data.path = str(stack.folder / "data" / "nowhere")


@bad("spec.data.path", "absolute path")
def relative_data(stack: TrainerStack, spec: Spec) -> None:
    spec.data.path = "data/corpus"


@bad("spec.data.path", "outside the allowed folders: use one in")
def data_outside_roots(stack: TrainerStack, spec: Spec) -> None:
    spec.data.path = "/etc"


@bad("spec.data.path", "outside the allowed folders")
def missing_data_outside_roots(stack: TrainerStack, spec: Spec) -> None:
    spec.data.path = "/etc/there-is-no-such-folder"


@bad("spec.data.path", "outside the allowed folders")
def data_that_climbs_out(stack: TrainerStack, spec: Spec) -> None:
    spec.data.path = str(stack.folder / "data" / ".." / "..")


@bad("spec.data.path", "outside the allowed folders")
def symlink_out_of_the_roots(stack: TrainerStack, spec: Spec) -> None:
    link = stack.folder / "data" / "escape"
    link.unlink(missing_ok=True)
    link.symlink_to("/etc")
    spec.data.path = str(link)


@bad("spec.data.path", "loop of symlinks")
def symlink_loop(stack: TrainerStack, spec: Spec) -> None:
    link = stack.folder / "data" / "loop"
    link.unlink(missing_ok=True)
    link.symlink_to(link)
    spec.data.path = str(link)


@bad("spec.data.path", "is not a folder")
def data_is_a_file(stack: TrainerStack, spec: Spec) -> None:
    spec.data.path = str(stack.data / "module_0.py")


@bad("spec.data.path", "holds no text file")
def empty_data(stack: TrainerStack, spec: Spec) -> None:
    folder = stack.folder / "data" / "empty"
    folder.mkdir(exist_ok=True)
    spec.data.path = str(folder)


@bad("spec.data.path", "1 binary")
def binary_data(stack: TrainerStack, spec: Spec) -> None:
    folder = stack.folder / "data" / "binary"
    folder.mkdir(exist_ok=True)
    (folder / "blob.py").write_bytes(bytes(range(256)) * 100)
    spec.data.path = str(folder)


@bad("spec.data.path", "holds no text file")
def no_file_of_that_pattern(stack: TrainerStack, spec: Spec) -> None:
    spec.data.include_globs.append("*.rs")


@bad("spec.data.path", f"holds 10 bytes of text, and one window of tier 1 takes "
     f"{CONTEXT_TOKENS + TARGET_TOKENS} tokens ({CONTEXT_TOKENS} + {TARGET_TOKENS})")  # fmt: skip
def corpus_shorter_than_a_window(stack: TrainerStack, spec: Spec) -> None:
    folder = stack.folder / "data" / "short"
    folder.mkdir(exist_ok=True)
    (folder / "short.py").write_text("x = 12345\n")
    spec.data.path = str(folder)


@bad("spec.training.warmup_steps", "is 3, and spec.training.steps is 3: fewer than steps")
def warmup_as_long_as_the_run(stack: TrainerStack, spec: Spec) -> None:
    spec.training.warmup_steps = 3


@bad("spec.training.steps", "is 0: between 1 and 1000000000")
def no_steps(stack: TrainerStack, spec: Spec) -> None:
    spec.training.steps = 0


@bad("spec.training.learning_rate", "is nan")
def learning_rate_that_is_no_number(stack: TrainerStack, spec: Spec) -> None:
    spec.training.learning_rate = float("nan")


@bad("spec.plan", "is missing: take the plan from PlannerService.Plan")
def no_plan(stack: TrainerStack, spec: Spec) -> None:
    spec.ClearField("plan")


@bad("spec.plan.model.hidden_size", "is missing")
def model_without_a_size(stack: TrainerStack, spec: Spec) -> None:
    spec.plan.model.hidden_size = 0


@bad("spec.plan.model.key_value_head_count", "does not divide 4 query heads")
def heads_that_do_not_divide(stack: TrainerStack, spec: Spec) -> None:
    spec.plan.model.key_value_head_count = 3


@bad("spec.plan.execution.layer_inputs.placement", "the device is the host's own processor")
def offload_on_a_cpu(stack: TrainerStack, spec: Spec) -> None:
    spec.plan.execution.layer_inputs.placement = planner_pb2.PLACEMENT_HOST


@bad("spec.plan.execution.layer_inputs.placement", "without CHECKPOINT_POLICY_EVERY_LAYER")
def offload_without_checkpointing(stack: TrainerStack, spec: Spec) -> None:
    spec.plan.device_kind = profiler_pb2.DEVICE_KIND_CUDA
    spec.plan.execution.layer_inputs.placement = planner_pb2.PLACEMENT_HOST
    spec.plan.execution.checkpoint_policy = planner_pb2.CHECKPOINT_POLICY_NONE


@bad("spec.model_path", "does not say where its weights are")
def weights_from_nowhere(stack: TrainerStack, spec: Spec) -> None:
    spec.plan.model.ClearField("weights")


@bad("spec.model_path", "outside the allowed folders")
def model_outside_roots(stack: TrainerStack, spec: Spec) -> None:
    spec.model_path = str(stack.data)


@bad("spec.model_path", "has no config.json")
def model_without_config(stack: TrainerStack, spec: Spec) -> None:
    folder = model_folder(stack, "no-config")
    (folder / "config.json").unlink()
    spec.model_path = str(folder)


@bad("spec.model_path", "is not JSON")
def model_with_broken_config(stack: TrainerStack, spec: Spec) -> None:
    folder = model_folder(stack, "broken")
    (folder / "config.json").write_text("{nonsense")
    spec.model_path = str(folder)


@bad("spec.model_path", "is not a JSON object")
def model_with_a_list_for_config(stack: TrainerStack, spec: Spec) -> None:
    folder = model_folder(stack, "list")
    (folder / "config.json").write_text("[]")
    spec.model_path = str(folder)


@bad("spec.model_path", "config.json says model_type 'gpt2', the plan 'llama'")
def model_of_another_family(stack: TrainerStack, spec: Spec) -> None:
    spec.model_path = str(model_folder(stack, "gpt2", model_type="gpt2"))


@bad("spec.model_path", "config.json says hidden_size 64, the plan 32")
def model_of_another_size(stack: TrainerStack, spec: Spec) -> None:
    spec.model_path = str(model_folder(stack, "wide", hidden_size=64))


@bad("spec.model_path", "has no *.safetensors")
def model_without_weights(stack: TrainerStack, spec: Spec) -> None:
    folder = model_folder(stack, "no-weights")
    (folder / "model.safetensors").unlink()
    spec.model_path = str(folder)


@bad("spec.model_path", "has no tokenizer")
def model_without_tokenizer(stack: TrainerStack, spec: Spec) -> None:
    folder = model_folder(stack, "no-tokenizer")
    (folder / "tokenizer.json").unlink()
    spec.model_path = str(folder)


@pytest.mark.parametrize("name", BAD_SPECS)
def test_bad_spec_is_refused_naming_field_and_fix(api: TrainerStack, name: str) -> None:
    bend, field, text = BAD_SPECS[name]
    spec = a_spec(api.data)
    bend(api, spec)
    before = everything_stored(api)
    request = trainer_pb2.CreateRunRequest(request_id=f"bad-{name}", spec=spec)
    code, violations = refused(lambda: api.stub.CreateRun(request, timeout=10))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert text in violations[field]
    assert everything_stored(api) == before
    with api.valkey.client() as client:
        assert not client.exists(keys.request_key(request.request_id))


def test_good_model_path_is_accepted(api: TrainerStack) -> None:
    spec = a_spec(api.data)
    spec.model_path = str(model_folder(api, "good"))
    assert api.stub.CreateRun(trainer_pb2.CreateRunRequest(spec=spec)).run.state == PLANNED


def test_data_behind_a_symlink_inside_the_roots_is_accepted(api: TrainerStack) -> None:
    link = api.folder / "data" / "alias"
    link.symlink_to(api.data)
    spec = a_spec(link)
    assert api.stub.CreateRun(trainer_pb2.CreateRunRequest(spec=spec)).run.state == PLANNED


@pytest.mark.parametrize("field", ["spec.data.path", "spec.model_path"])
def test_a_symlink_that_was_swapped_since_is_not_followed_by_the_worker(
    lonely_trainer: TrainerStack, field: str
) -> None:
    stack = lonely_trainer
    model, data = stack.folder / "models" / "alias", stack.folder / "data" / "alias"
    link = data if field == "spec.data.path" else model
    model.parent.mkdir(exist_ok=True)
    model.symlink_to(model_folder(stack, "good"))
    data.symlink_to(stack.data)
    spec = a_spec(data)
    spec.model_path = str(model)
    run_id = stack.stub.CreateRun(trainer_pb2.CreateRunRequest(spec=spec), timeout=10).run.run_id
    good = link.resolve()
    link.unlink()
    link.symlink_to("/etc")
    stack.start_worker()
    run = stack.wait_for(run_id, trainer_pb2.RUN_STATE_FAILED, trainer_pb2.RUN_STATE_SUCCEEDED)
    assert run.state == trainer_pb2.RUN_STATE_FAILED
    bad_data, bad_model = trainer_pb2.FAILURE_CAUSE_BAD_DATA, trainer_pb2.FAILURE_CAUSE_BAD_MODEL
    assert run.error.cause == (bad_data if link == data else bad_model)
    assert run.error.message.startswith(f"{field}: {link} is outside the allowed folders: use one")
    assert not (stack.runs_directory / run_id / "engine.pid").exists()
    link.unlink()
    link.symlink_to(good)
    stack.stub.ResumeRun(trainer_pb2.ResumeRunRequest(run_id=run_id), timeout=10)
    assert stack.wait_for(run_id, trainer_pb2.RUN_STATE_SUCCEEDED)


def test_request_over_the_size_limit_is_refused(api: TrainerStack) -> None:
    spec = a_spec(api.data)
    spec.display_name = "x" * (5 << 20)
    code, _ = refused(lambda: api.stub.CreateRun(trainer_pb2.CreateRunRequest(spec=spec)))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
