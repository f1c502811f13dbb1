"""Options that several commands share, and which request fields they set."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class ObjectiveName(StrEnum):
    """Values of --objective."""

    MAX_CONTEXT = "max-context"
    FASTEST = "fastest"


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
    str,
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
DiskSize = Annotated[
    str, typer.Option("--disk", help="Scratch disk the run may take.", show_default=False)
]
MaxStepSeconds = Annotated[
    str,
    typer.Option(help="Longest acceptable optimiser step: 90, 90s, 30m, 2h.", show_default=False),
]
ExactOnly = Annotated[
    bool,
    typer.Option(
        "--exact-only", help="Only optimisations that leave model and gradients unchanged."
    ),
]
Tier = Annotated[
    int | None, typer.Option(min=1, help="This tier and no other (`elite tiers` lists them).")
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
    typer.Option("--device", min=0, help="Index of the device, as `elite profile` shows it."),
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
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps.")]
PlanFile = Annotated[
    Path | None, typer.Option(help="Use this plan, made with `elite plan --json`.")
]
LearningRate = Annotated[float | None, typer.Option(help="Peak. Default: 2e-4.")]
WarmupSteps = Annotated[int, typer.Option(min=0, help="Steps of linear warm-up.")]
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
    int | None, typer.Option(min=0, help="Held-out windows evaluated. Default: 4.")
]
CheckpointEvery = Annotated[
    int, typer.Option(min=0, help="Steps between checkpoints; 0: one at the end.")
]
Seed = Annotated[int, typer.Option(min=0)]
Name = Annotated[str, typer.Option(help="A name for people.")]
RequestId = Annotated[
    str, typer.Option(help="The same id gives the same run, however often it is sent.")
]
Watch = Annotated[
    bool, typer.Option("--watch/--detach", help="Follow the run, or leave it to the worker.")
]

# Where a request field comes from, for the hint under an error.
OPTION_OF_FIELD = {
    "model": "--model",
    "machine.hypothetical.gpu_id": "--gpu",
    "machine.hypothetical.host_memory_bytes": "--host-ram",
    "machine.hypothetical.disk_free_bytes": "--disk",
    "constraints.host_memory_bytes": "--host-ram",
    "constraints.disk_bytes": "--disk",
    "constraints.max_step_seconds": "--max-step-seconds",
    "constraints.exact_only": "--exact-only",
    "constraints.tier": "--tier",
    "constraints.headroom_fraction": "--headroom",
    "constraints.device_index": "--device",
    "objective": "--objective",
    "tier": "--tier",
    "optimization_ids": "--optimization",
    "request_id": "--request-id",
    "spec.model_path": "--model",
    "spec.plan": "--plan",
    "spec.data.path": "--data",
    "spec.data.include_globs": "--include",
    "spec.data.exclude_globs": "--exclude",
    "spec.data.held_out_fraction": "--held-out",
    "spec.training.steps": "--steps",
    "spec.training.learning_rate": "--learning-rate",
    "spec.training.warmup_steps": "--warmup-steps",
    "spec.training.checkpoint_every_steps": "--checkpoint-every",
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
