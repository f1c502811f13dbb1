"""Checkpoints of a run: what is needed to go on as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from elite.planner.v1 import planner_pb2
from services.trainer.engine.adapters import read_adapter_weights, write_adapter_weights
from services.trainer.engine.failures import BAD_DATA, BAD_MODEL, INTERNAL, EngineError
from services.trainer.engine.optimizer import optimizer_state, restore_optimizer_state
from services.trainer.jobs.durable import (
    CorruptFolderError,
    remove_unfinished,
    replace_folder,
    verify_folder,
)
from services.trainer.jobs.fence import Fence

KEPT_CHECKPOINTS = 2
_PREFIX = "step-"
_CAUSES = {"dataset_fingerprint": BAD_DATA, "weights_fingerprint": BAD_MODEL}


@dataclass(frozen=True)
class Position:
    """How far a run is. `loss_scale` is 1 except in float16."""

    step: int
    loss_scale: float


@dataclass(frozen=True)
class Identity:
    """What must be the same for a checkpoint to be continued."""

    dataset_fingerprint: str
    weights_fingerprint: str
    seed: int
    lora_rank: int
    lora_alpha: float
    lora_target_modules: tuple[str, ...]
    optimizer: str
    key_value_head_count: int

    @classmethod
    def of(
        cls, plan: planner_pb2.Plan, dataset_fingerprint: str, weights_fingerprint: str, seed: int
    ) -> Identity:
        """The identity of a run."""
        return cls(
            dataset_fingerprint, weights_fingerprint, seed, plan.lora.rank, plan.lora.alpha,
            tuple(sorted(plan.lora.target_modules)),
            planner_pb2.OptimizerKind.Name(plan.execution.optimizer),
            plan.execution.key_value_head_count,
        )  # fmt: skip


class CheckpointStore:
    """The checkpoints of one run, in `<run directory>/checkpoints/step-00000010`.

    Methods that change anything raise `SupersededError` when a newer attempt has the folder.
    """

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._root = fence.folder / "checkpoints"

    def save(
        self, model: Any, optimizer: torch.optim.Optimizer, position: Position, identity: Identity
    ) -> tuple[Path, int]:
        """Writes a checkpoint and drops all but the newest two; returns its folder and bytes."""

        def write(folder: Path) -> None:
            """The checkpoint's files."""
            write_adapter_weights(model, folder)
            save_file(optimizer_state(optimizer), folder / "optimizer.safetensors")
            state = {**asdict(position), "identity": asdict(identity)}
            (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")

        folder = self._root / f"{_PREFIX}{position.step:08d}"
        size_bytes = replace_folder(folder, write, self._fence.held)
        with self._fence.held():
            for old in self._folders()[KEPT_CHECKPOINTS:]:
                shutil.rmtree(old)
        return folder, size_bytes

    def exists(self) -> bool:
        """Whether there is any checkpoint, good or not."""
        return bool(self._folders())

    def newest_good(self) -> Path | None:
        """The newest checkpoint whose manifest verifies; broken ones before it are removed."""
        with self._fence.held():
            remove_unfinished(self._root)
            for folder in self._folders():
                try:
                    verify_folder(folder)
                    return folder
                except CorruptFolderError as error:
                    print(f"checkpoint dropped: {error}", file=sys.stderr)
                    shutil.rmtree(folder)
        return None

    def _folders(self) -> list[Path]:
        """Newest first."""
        found = self._root.glob(f"{_PREFIX}*")
        return sorted((f for f in found if f.name[len(_PREFIX) :].isdigit()), reverse=True)


def check_identity(folder: Path, identity: Identity) -> None:
    """Raises `EngineError` when a checkpoint is of other data, weights, LoRA or optimizer."""
    theirs = _state(folder)["identity"]
    ours = json.loads(json.dumps(asdict(identity)))
    changed = [name for name in ours if ours[name] != theirs.get(name)]
    if changed:
        cause = _CAUSES.get(changed[0], INTERNAL) if len(changed) == 1 else INTERNAL
        problem = f"{folder.name} cannot be continued: {', '.join(changed)} changed since"
        fix = "put data, model, plan and seed back as they were, or start a new run"
        raise EngineError(cause, problem, fix)


def load_checkpoint(folder: Path, model: Any, optimizer: torch.optim.Optimizer) -> Position:
    """Puts a verified checkpoint of the same identity into model and optimizer."""
    state = _state(folder)
    read_adapter_weights(model, folder)
    restore_optimizer_state(optimizer, load_file(folder / "optimizer.safetensors"))
    return Position(state["step"], state["loss_scale"])


def _state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return state
