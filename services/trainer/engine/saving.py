"""When a run is saved: after a step, and in the middle of one where the executor can."""

from __future__ import annotations

import itertools
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from services.trainer.engine.checkpoint import CheckpointStore, Identity, Position
from services.trainer.engine.events import EventEmitter
from services.trainer.engine.specification import Specification
from services.trainer.engine.streaming.step_journal import Hooks, SavedStep, StepJournal
from services.trainer.jobs.fence import Fence, OwnedFolder, SupersededError

STEP_FOLDER = "step"
_STEP_FOLDER_NAME = re.compile(rf"{STEP_FOLDER}(-\d+)?")


@dataclass
class RunSaver:
    """Writes the checkpoints of one run, and says when one is due.

    model: with adapters (PEFT). position: where the run is; the stepper's loss scale goes with it.
    saved_step: of the newest checkpoint, -1 without one.
    """

    specification: Specification
    checkpoints: CheckpointStore
    events: EventEmitter
    model: Any
    optimizer: torch.optim.Optimizer
    identity: Identity
    position: Position
    saved_step: int = -1
    clock: Callable[[], float] = time.monotonic
    _saved_seconds: float = field(init=False)

    def __post_init__(self) -> None:
        """The interval begins now."""
        self._saved_seconds = self.clock()

    def is_due(self, done: int) -> bool:
        """Whether a checkpoint should be written after so many steps."""
        training = self.specification.training
        steps, seconds = training.checkpoint_every_steps, training.checkpoint_every_seconds
        if done == training.steps or (steps and done % steps == 0):
            return True
        return bool(seconds) and self.clock() - self._saved_seconds >= seconds

    def save(self) -> None:
        """Writes a checkpoint of where the run is."""
        at = self.position
        path, size_bytes = self.checkpoints.save(self.model, self.optimizer, at, self.identity)
        self.saved_step, self._saved_seconds = at.step, self.clock()
        saved = trainer_pb2.CheckpointSaved(step=at.step, path=str(path), bytes=size_bytes)
        self.events.emit(checkpoint_saved=saved)

    def save_once(self) -> None:
        """Writes it unless it is there: what a step in the middle begins with."""
        if self.saved_step != self.position.step:
            self.save()


def step_identity(plan: planner_pb2.Plan, identity: Identity) -> dict[str, Any]:
    """What must be the same for a step to be continued in the middle."""
    execution = plan.execution.SerializeToString(deterministic=True).hex()
    return asdict(identity) | {
        "torch": torch.__version__, "execution": execution,
        "tokens": [int(plan.context_tokens), int(plan.target_tokens)],
    }  # fmt: skip


def make_step_journal(
    specification: Specification, fence: Fence, identity: Identity
) -> StepJournal | None:
    """None where the executor cannot save a step in the middle, or the run does not want it.

    While another attempt's engine lives, its folder is left to it. Of the folders that dead ones
    left, the step that is furthest goes on, and the others go. Raises `SupersededError`.
    """
    plan, seconds = specification.plan, specification.training.checkpoint_every_seconds
    if plan.execution.executor != planner_pb2.EXECUTOR_STREAMING or not seconds:
        return None
    wanted, drop_others = step_identity(plan, identity), partial(_drop_unowned, fence)
    names = itertools.chain([STEP_FOLDER], (f"{STEP_FOLDER}-{n}" for n in itertools.count(1)))
    with fence.held():
        owned = _unowned_folders(fence)
        if not owned:
            owned = [OwnedFolder.first_free(fence.folder / name for name in names)]
        journals = [StepJournal(one, wanted, seconds, drop_others=drop_others) for one in owned]
        furthest = max(journals, key=lambda journal: journal.found)
        for journal in journals:
            if journal is not furthest:
                shutil.rmtree(journal.folder, ignore_errors=True)
    return furthest


def _drop_unowned(fence: Fence) -> None:
    """Removes what attempts that are dead by now have left; not what a newer attempt may want."""
    with suppress(SupersededError), fence.held():
        for owned in _unowned_folders(fence):
            shutil.rmtree(owned.path, ignore_errors=True)


def _unowned_folders(fence: Fence) -> list[OwnedFolder]:
    """Folders of steps that no living process has; they are this one's until it lets them go."""
    found = []
    for path in sorted(fence.folder.glob(f"{STEP_FOLDER}*")):
        if _STEP_FOLDER_NAME.fullmatch(path.name):
            with suppress(StopIteration):  # a living process has it
                found.append(OwnedFolder.first_free(iter([path])))
    return found


def hooks_of(saver: RunSaver, stop_requested: Callable[[], bool]) -> Hooks:
    """What the journal asks of the run."""

    def saved(step: SavedStep) -> None:
        """Tells of a step that was saved in the middle."""
        message = trainer_pb2.CheckpointSaved(
            step=step.step, bytes=step.bytes, windows_done=step.windows_done,
            stages_done=step.stages_done, stage_count=step.stage_count, seconds=step.seconds,
        )  # fmt: skip
        saver.events.emit(checkpoint_saved=message)

    return Hooks(stop_requested, saver.save_once, saved)
