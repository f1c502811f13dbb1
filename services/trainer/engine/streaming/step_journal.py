"""A step in the middle, on disk: another process goes on with it at the last layer boundary.

A step of hours outlives its process. At layer boundaries, when enough time has passed or a stop was
asked for, everything the rest of the step needs goes into `<run directory>/step`: pages, the
gradients found so far, and a state file that names them. The state file is replaced last and in one
go, so that there is always one whole state or none. It belongs to one step of one run under one
plan; any other is dropped. The weights are those of the run's checkpoint before the step, which is
written first.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from services.trainer.engine.failures import DISK_FULL, StopRequested, describe
from services.trainer.engine.streaming.kept_pages import KeptPages
from services.trainer.engine.streaming.workspace import Workspace
from services.trainer.jobs.durable import flush_entry, replace_file
from services.trainer.jobs.fence import OwnedFolder

_STATE = "state.json"
# Changes with the stages of a window and with what lies in the pages between them.
_FORMAT = 2


@dataclass(frozen=True, slots=True)
class SavedStep:
    """What was saved: windows done, stages done of all those of the next one; bytes and seconds."""

    step: int
    windows_done: int
    stages_done: int
    stage_count: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the journal asks of the run.

    stop_requested: whether to stop at this boundary. before_first: makes sure that the weights of
    the step are on disk. saved: hears of every save.
    """

    stop_requested: Callable[[], bool] = lambda: False
    before_first: Callable[[], None] = lambda: None
    saved: Callable[[SavedStep], None] = lambda _: None


class StepJournal:
    """Saves a step at layer boundaries, `interval_seconds` apart or before a stop.

    identity: what must be the same for a step to be continued. drop_others: drops what lies beside.
    """

    def __init__(
        self, owned: OwnedFolder, identity: Mapping[str, Any], interval_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        drop_others: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Drops what another run, plan or version left in the folder."""
        self._owned, self.folder = owned, owned.path
        self._interval_seconds, self.hooks = interval_seconds, Hooks()
        self._identity = json.loads(json.dumps({**identity, "format": _FORMAT}))
        self._clock, self._last_seconds = clock, clock()
        self._drop_others = drop_others
        self._parameters: Sequence[torch.nn.Parameter] = ()
        self._pages: KeptPages | None = None
        # Where the step is: which it is, losses of its windows so far, and the newest state.
        self._step, self._loss_scale = -1, 1.0
        self._losses: list[float] = []
        self._turn = 0
        self._has_room, self._is_saved = True, False
        self._found = self._read_state()
        if self._found is None:
            self._drop_own()

    @property
    def is_due(self) -> bool:
        """Whether the newest state on disk, of step or run, is older than the interval."""
        return self._clock() - self._last_seconds >= self._interval_seconds

    @property
    def is_saved(self) -> bool:
        """Whether this step has a state on disk."""
        return self._is_saved

    @property
    def found(self) -> tuple[int, int, int]:
        """How far the step that may go on is: its number, windows done, stages of the next one."""
        found = self._found
        return (found["step"], len(found["losses"]), found["stages_done"]) if found else (-1, 0, 0)

    # The stepper calls these.

    def begin_step(
        self, step: int, loss_scale: float, parameters: Sequence[torch.nn.Parameter]
    ) -> tuple[list[float], float]:
        """Losses of the windows that are done, and the loss scale that they were done with.

        Their gradients are in `.grad` again. The scale may have been lowered within the step.
        """
        self._step, self._loss_scale, self._parameters = step, loss_scale, parameters
        found, self._is_saved = self._found, False
        if found is None or found["step"] != step or found["loss_scale"] > loss_scale:
            self._drop_state()
            return [], loss_scale
        file = self.folder / _gradients_name(found["turn"])
        if not file.exists() or _checksum(file) != found["gradients"]:
            print(f"a step in the middle is dropped: {file} changed", file=sys.stderr)
            self._drop_state()
            return [], loss_scale
        for index, gradient in load_file(file).items():
            parameter = parameters[int(index)]
            parameter.grad = gradient.to(parameter.device)
        self._is_saved, self._turn = True, found["turn"]
        self._loss_scale = float(found["loss_scale"])
        return list(found["losses"]), self._loss_scale

    def begin_window(self, losses: Sequence[float]) -> None:
        """A window comes, after those with these losses."""
        self._losses = list(losses)
        # The pages of the window before are about to be overwritten: a state may not need them.
        if self._found is None and self._is_saved and self._save(0, 0.0) is None:
            self._drop_state()
        if self._pages:
            self._pages.forget()

    def end_step(self) -> None:
        """The weights after the step are on disk."""
        self._last_seconds = self._clock()
        self._drop_state()

    def drop(self) -> None:
        """Leaves nothing on the disk. Page files of an executor need to be made again."""
        self._drop_own()
        self._drop_others()

    # The executor calls these.

    def resume(self, workspace: Workspace) -> tuple[int, float]:
        """Stages of the window that are done, and its loss; fills the workspace as it was then."""
        found, self._found = self._found, None
        if found is None or not found["stages_done"]:
            return 0, 0.0
        self._pages_of(workspace).restore(found["turn"], found["pages"])
        return found["stages_done"], found["loss"]

    def boundary(self, workspace: Workspace, stages: tuple[int, int], loss: torch.Tensor) -> None:
        """A layer is done: saves if it is time. stages: done, and of how many.

        Raises `StopRequested` after saving for a stop.
        """
        stops = self.hooks.stop_requested()
        if not self._has_room or not (stops or self.is_due):
            return
        started = time.perf_counter()
        written_bytes = self._save(stages[0], float(loss), workspace)
        if written_bytes is None:
            return
        seconds = time.perf_counter() - started
        self.hooks.saved(SavedStep(self._step, len(self._losses), *stages, written_bytes, seconds))
        if stops:
            raise StopRequested

    def _save(
        self, stages_done: int, loss: float, workspace: Workspace | None = None
    ) -> int | None:
        """Bytes of pages that were written. workspace: None between windows, which need no pages.

        None when the disk is full: the step goes on, and the state before is as good as it was.
        """
        pages: Mapping[str, Any] = {}
        written_bytes = 0
        try:
            if not self._is_saved:
                self.hooks.before_first()
            if workspace:
                pages, written_bytes = self._pages_of(workspace).save(1 - self._turn)
            self._write_state(stages_done, loss, pages)
        except Exception as error:
            if describe(error).cause != DISK_FULL:
                raise
            if self._has_room:
                print(f"steps are not saved in the middle: {error}", file=sys.stderr)
            self._has_room = False
            return None
        self._last_seconds = self._clock()
        return written_bytes

    def _write_state(self, stages_done: int, loss: float, pages: Mapping[str, Any]) -> None:
        turn = 1 - self._turn
        gradients = {
            str(index): parameter.grad
            for index, parameter in enumerate(self._parameters)
            if parameter.grad is not None
        }
        file = self.folder / _gradients_name(turn)
        save_file(gradients, file)
        flush_entry(file)
        state = {
            "identity": self._identity, "step": self._step, "loss_scale": self._loss_scale,
            "losses": self._losses, "stages_done": stages_done, "loss": loss, "turn": turn,
            "gradients": _checksum(file),
            "pages": {name: list(sums.items()) for name, sums in pages.items()},
        }  # fmt: skip
        replace_file(self.folder / _STATE, json.dumps(state))
        self._turn, self._is_saved = turn, True

    def _pages_of(self, workspace: Workspace) -> KeptPages:
        if self._pages is None:
            self._pages = KeptPages(self.folder, workspace.kept, workspace.hidden)
        return self._pages

    def _drop_own(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._found, self._is_saved = None, False

    def _drop_state(self) -> None:
        (self.folder / _STATE).unlink(missing_ok=True)
        self._found, self._is_saved = None, False

    def _read_state(self) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] = json.loads((self.folder / _STATE).read_text("utf-8"))
            theirs = state["identity"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"a step in the middle is dropped: {error!r}", file=sys.stderr)
            return None
        changed = [name for name, value in self._identity.items() if theirs.get(name) != value]
        if changed:
            what = ", ".join(changed)
            print(f"a step in the middle is dropped: {what} changed since", file=sys.stderr)
            return None
        state["pages"] = {name: dict(sums) for name, sums in state["pages"].items()}
        return state


def _checksum(file: Path) -> int:
    return zlib.crc32(file.read_bytes())


def _gradients_name(turn: int) -> str:
    return f"gradients-{turn}.safetensors"
