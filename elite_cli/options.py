"""Options that several commands share, in groups, and which request fields they set."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

# Within what every field of the requests holds; the services know what makes sense.
LARGEST_COUNT = 10**9
MOST_TOKENS = 10**15
LARGEST_SEED = 2**63


class ObjectiveName(StrEnum):
    """Values of --objective."""

    MAX_CONTEXT = "max-context"
    FASTEST = "fastest"


class AdapterDtype(StrEnum):
    """Values of --adapter-dtype."""

    COMPUTE = "compute"
    FLOAT32 = "float32"


Json = Annotated[
    bool, typer.Option("--json", help="Print the response as protobuf JSON and nothing else.")
]
Model = Annotated[
    str,
    typer.Option(
        help="An id from `elite models`, a folder with a config.json, or a config.json file.",
        show_default=False,
    ),
]
Gpu = Annotated[
    str | None,
    typer.Option(
        help="Plan for this card (an id from `elite gpus`) instead of this machine.",
        show_default=False,
    ),
]
HostRam = Annotated[
    str,
    typer.Option(
        help="Host memory the run may take, as in 64GiB. With --gpu: that machine's memory.",
        show_default=False,
    ),
]
GpuRam = Annotated[
    str, typer.Option(help="Device memory the run may take, as in 6GiB.", show_default=False)
]
DiskSize = Annotated[
    str, typer.Option("--disk", help="Scratch disk the run may take.", show_default=False)
]
MaxStepSeconds = Annotated[
    str,
    typer.Option(help="Longest acceptable optimiser step: 90, 90s, 30m, 2h.", show_default=False),
]
MaxRunTime = Annotated[
    str,
    typer.Option(
        help="Longest acceptable run, as in 12h or 3d; needs --steps or --epochs.",
        show_default=False,
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        help="A lossy optimisation the plan may use, as in activations-4bit; repeat it.",
        show_default=False,
    ),
]
Forbid = Annotated[
    list[str] | None,
    typer.Option(
        help="A lossy optimisation the plan must not have, as in qlora-4bit; repeat it.",
        show_default=False,
    ),
]
ExactOnly = Annotated[
    bool,
    typer.Option(
        "--exact-only", help="Only optimisations that leave model and gradients unchanged."
    ),
]
Tier = Annotated[
    int | None,
    typer.Option(
        min=1, max=LARGEST_COUNT, help="This tier and no other (`elite tiers` lists them)."
    ),
]
Headroom = Annotated[
    float | None,
    typer.Option(help="Share of the safe memory kept free. Default: 0.12.", show_default=False),
]
Objective = Annotated[
    ObjectiveName, typer.Option(help="The longest context, or the fastest step at --tier.")
]
DeviceIndex = Annotated[
    int | None,
    typer.Option(
        "--device",
        min=0,
        max=LARGEST_COUNT,
        help="Index of the device, as `elite profile` shows it.",
    ),
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Show how every figure came about, with its numbers.")
]
Compare = Annotated[
    str | None,
    typer.Option(
        help="Rank these cards instead: ids from `elite gpus` with commas between, or `all`. "
        "--host-ram and --disk are the host's.",
        show_default=False,
    ),
]
Chart = Annotated[
    Path | None,
    typer.Option(help="Write the pictures to this file too: .svg or .png.", show_default=False),
]
TargetModules = Annotated[
    str,
    typer.Option(
        help="Linears that carry adapters, as in q_proj,v_proj. Default: all.", show_default=False
    ),
]
AdapterDtypeOption = Annotated[
    AdapterDtype, typer.Option("--adapter-dtype", help="float32 is PEFT's own default.")
]
Dropout = Annotated[float, typer.Option(help="Share of the adapters' inputs dropped.")]
Rank = Annotated[
    int | None,
    typer.Option(
        min=1, max=LARGEST_COUNT, help="LoRA rank. Default: the tier's.", show_default=False
    ),
]
PlannedSteps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=1,
        max=LARGEST_COUNT,
        help="Optimiser steps of the run.",
        show_default=False,
    ),
]
Epochs = Annotated[
    float | None,
    typer.Option(
        min=0, help="Instead of --steps: passes over --dataset-tokens.", show_default=False
    ),
]
DatasetTokens = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_TOKENS, help="Tokens of the training data.", show_default=False),
]
Accumulate = Annotated[
    int, typer.Option(min=1, max=LARGEST_COUNT, help="Windows per optimiser step.")
]
Stages = Annotated[
    list[str] | None,
    typer.Option(
        "--stage", help="TIER:STEPS at a shorter context first; repeat it.", show_default=False
    ),
]
StateDirectory = Annotated[
    Path | None,
    typer.Option(
        envvar="ELITE_CLI_STATE_DIRECTORY",
        help="State of the local stack. Default: ~/.local/state/elite.",
        show_default=False,
    ),
]

# What `elite train` takes besides.
Data = Annotated[str, typer.Option(help="Folder of source files, on the trainer's machine.")]
Steps = Annotated[int, typer.Option(min=1, max=LARGEST_COUNT, help="Optimiser steps.")]
PlanFile = Annotated[
    Path | None, typer.Option(help="Use this plan, made with `elite plan --json`.")
]
LearningRate = Annotated[float | None, typer.Option(help="Peak. Default: 2e-4.")]
WarmupSteps = Annotated[
    int, typer.Option(min=0, max=LARGEST_COUNT, help="Steps of linear warm-up.")
]
Include = Annotated[
    list[str] | None, typer.Option(help="File name pattern to take, as in '*.py'; repeat it.")
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Path pattern to leave out, as in 'test/*'; repeat it.")
]
HeldOut = Annotated[
    float | None, typer.Option(help="Share of files kept for evaluation. Default: 0.05.")
]
EvaluationWindows = Annotated[
    int | None,
    typer.Option(min=0, max=LARGEST_COUNT, help="Held-out windows evaluated. Default: 4."),
]
CheckpointEvery = Annotated[
    int,
    typer.Option(
        min=0, max=LARGEST_COUNT, help="Steps between checkpoints; 0: by time, and one at the end."
    ),
]
CheckpointEverySeconds = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=1_000_000,
        help="Seconds between checkpoints, also in the middle of a step; 0: not by time; "
        "without it: 600.",
    ),
]
Priority = Annotated[
    int, typer.Option(min=0, max=9, help="Waiting runs of a higher priority start first.")
]
StopAfter = Annotated[
    str,
    typer.Option(
        help="So long after it has started the run is checkpointed and fails, as in 12h.",
        show_default="no limit",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED)]
Name = Annotated[str, typer.Option(help="A name for people.")]
RequestId = Annotated[
    str, typer.Option(help="The same id gives the same run, however often it is sent.")
]
Watch = Annotated[
    bool, typer.Option("--watch/--detach", help="Follow the run, or leave it to the worker.")
]

# Groups; what each is called in the help is its docstring.


@dataclass(frozen=True)
class MachineOptions:
    """The machine"""

    gpu: Gpu = None
    gpu_ram: GpuRam = ""
    host_ram: HostRam = ""
    disk: DiskSize = ""
    headroom: Headroom = None
    device: DeviceIndex = None


@dataclass(frozen=True)
class LimitOptions:
    """Time limits"""

    max_step_seconds: MaxStepSeconds = ""
    max_run_time: MaxRunTime = ""


@dataclass(frozen=True)
class ChoiceOptions:
    """The choice"""

    exact_only: ExactOnly = False
    allow: Allow = None
    forbid: Forbid = None
    tier: Tier = None
    objective: Objective = ObjectiveName.MAX_CONTEXT


@dataclass(frozen=True)
class AdapterOptions:
    """The adapters"""

    rank: Rank = None
    target_modules: TargetModules = ""
    adapter_dtype: AdapterDtypeOption = AdapterDtype.COMPUTE
    dropout: Dropout = 0.0


@dataclass(frozen=True)
class ScheduleOptions:
    """The run, to see what all of it costs"""

    steps: PlannedSteps = None
    epochs: Epochs = None
    dataset_tokens: DatasetTokens = None
    accumulate: Accumulate = 1
    stage: Stages = None


# Where a request field comes from, for the hint under an error.
OPTION_OF_FIELD = {
    "model": "--model",
    "machine.hypothetical.gpu_id": "--gpu",
    "machine.hypothetical.host_memory_bytes": "--host-ram",
    "machine.hypothetical.disk_free_bytes": "--disk",
    "constraints.gpu_memory_bytes": "--gpu-ram",
    "constraints.host_memory_bytes": "--host-ram",
    "constraints.disk_bytes": "--disk",
    "constraints.max_step_seconds": "--max-step-seconds",
    "constraints.exact_only": "--exact-only",
    "constraints.tier": "--tier",
    "constraints.headroom_fraction": "--headroom",
    "constraints.device_index": "--device",
    "constraints.max_run_seconds": "--max-run-time",
    "constraints.allowed_lossy_ids": "--allow",
    "constraints.forbidden_lossy_ids": "--forbid",
    "objective": "--objective",
    "gpu_ids": "--compare",
    "host_memory_bytes": "--host-ram",
    "disk_free_bytes": "--disk",
    "adapters.target_modules": "--target-modules",
    "adapters.dtype": "--adapter-dtype",
    "adapters.dropout": "--dropout",
    "adapters.rank": "--rank",
    "schedule": "--steps",
    "schedule.epochs": "--epochs",
    "schedule.dataset_tokens": "--dataset-tokens",
    "schedule.gradient_accumulation_steps": "--accumulate",
    "schedule.curriculum": "--stage",
    "tier": "--tier",
    "optimization_ids": "--optimization",
    "request_id": "--request-id",
    "page_size": "--page-size",
    "page_token": "--page-token",
    "spec.display_name": "--name",
    "spec.priority": "--priority",
    "spec.max_run_seconds": "--stop-after",
    "spec.model_path": "--model",
    "spec.plan": "--plan",
    "spec.data.path": "--data",
    "spec.data.include_globs": "--include",
    "spec.data.exclude_globs": "--exclude",
    "spec.data.held_out_fraction": "--held-out",
    "spec.training.steps": "--steps",
    "spec.training.gradient_accumulation_steps": "--accumulate",
    "spec.training.learning_rate": "--learning-rate",
    "spec.training.warmup_steps": "--warmup-steps",
    "spec.training.checkpoint_every_steps": "--checkpoint-every",
    "spec.training.checkpoint_every_seconds": "--checkpoint-every-seconds",
    "spec.training.seed": "--seed",
    "spec.training.evaluation_windows": "--evaluation-windows",
}


def option_of_field(field: str) -> str:
    """The option that sets a request field, or "" when none does."""
    path = field.partition("[")[0]
    while path:
        if path in OPTION_OF_FIELD:
            return OPTION_OF_FIELD[path]
        path = path.rpartition(".")[0]
    return ""
