"""Removes what ended runs have left on this worker's disk: page files, old checkpoints, folders."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from services.trainer.jobs import keys
from services.trainer.jobs.connection import blocking_client
from services.trainer.jobs.durable import CorruptFolderError, verify_folder
from services.trainer.jobs.fence import no_attempt_begins
from services.trainer.jobs.identifiers import is_run_id
from services.trainer.jobs.states import TERMINAL_STATES, state_of
from services.trainer.settings import TrainerSettings

logger = logging.getLogger("elite.trainer.worker")

_DAY_SECONDS = 24 * 3600.0
# Of a step saved in the middle, and what killed writers left.
_LEFTOVERS = ("step", "step-*", "elite-pages-*", "*.tmp-*", "checkpoints/*.tmp-*")
_PAUSE_SECONDS = 3600.0


class Tidying:
    """One look at every run's folder. client: of Redis, blocking; its errors pass."""

    def __init__(self, client: Any, settings: TrainerSettings) -> None:
        self._client, self._settings = client, settings

    def once(self) -> None:
        """Tidies all folders. One that cannot be is logged and left."""
        for folder in self._folders():
            try:
                self._tidy(folder)
            except redis.RedisError:
                raise
            except Exception as error:  # one folder must not keep the others from being tidied
                extra = {"folder": str(folder), "error": repr(error)}
                logger.warning("cannot tidy up", extra=extra)

    def _folders(self) -> Iterator[Path]:
        root = self._settings.runs_directory
        if root.is_dir():
            yield from (path for path in root.iterdir() if is_run_id(path.name) and path.is_dir())

    def _tidy(self, folder: Path) -> None:
        # No attempt begins meanwhile; one that did before shows in the record.
        with no_attempt_begins(folder):
            names = ("state", "finished_at")
            state, finished = self._client.hmget(keys.run_key(folder.name), names)
            if state is None:
                self._remove_forgotten(folder)
            elif state_of(state.decode()) in TERMINAL_STATES:
                self._tidy_ended(folder, time.time() - int(finished or 0) / 1000)

    def _remove_forgotten(self, folder: Path) -> None:
        """Its record was removed for its age, or lost with a store: age alone decides."""
        days = self._settings.run_retention_days
        if days and time.time() - _last_change(folder) > days * _DAY_SECONDS:
            logger.info("removing the folder of an old run", extra={"run_id": folder.name})
            shutil.rmtree(folder)

    def _tidy_ended(self, folder: Path, seconds_since: float) -> None:
        days = self._settings.checkpoint_retention_days
        if not days or seconds_since < days * _DAY_SECONDS:
            return
        for pattern in _LEFTOVERS:
            for path in folder.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        checkpoints = sorted((folder / "checkpoints").glob("step-*"), reverse=True)
        newest_good = next(filter(_is_whole, checkpoints), None)
        for path in checkpoints if newest_good else ():
            if path != newest_good:
                shutil.rmtree(path)


class Housekeeper:
    """A thread that tidies up every hour."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._tidying = Tidying(blocking_client(settings), settings)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tidying", daemon=True)

    def start(self) -> None:
        """Starts with a first look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it without waiting."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._tidying.once()
            except redis.RedisError as error:
                logger.warning("tidying waits for redis", extra={"error": str(error)})
            except Exception:  # the next look may find what this one stumbled over gone
                logger.exception("tidying failed")
            self._stopping.wait(_PAUSE_SECONDS)


def _is_whole(checkpoint: Path) -> bool:
    try:
        verify_folder(checkpoint)
    except CorruptFolderError:
        return False
    return True


def _last_change(folder: Path) -> float:
    """Of the folder or of anything in it."""
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
