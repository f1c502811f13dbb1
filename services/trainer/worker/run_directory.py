"""The folder of one run: what the supervisor writes for the engine, and where things are."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from google.protobuf import json_format
from google.protobuf.message import Message

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.fence import DamagedTokenError, Fence, newest_token


class RunDirectory:
    """RUNS_DIRECTORY/RUN_ID with plan.json, spec.json, engine.log, checkpoints/ and adapter/."""

    def __init__(self, runs_directory: Path, run_id: str) -> None:
        self.path = runs_directory.absolute() / run_id
        self._token = self._told_steps = 0
        self.plan_path = self.path / "plan.json"
        self.spec_path = self.path / "spec.json"
        self.log_path = self.path / "engine.log"

    def prepare(self, run: trainer_pb2.Run) -> int:
        """Writes plan and spec and opens a new section of the log; returns its offset in bytes.

        From here on no earlier attempt may write. Raises `OSError`, and `SupersededError` when
        there is a later one.
        """
        self._token, self._told_steps = run.attempt_count, run.progress.completed_steps
        Fence(self.path, self._token).take()
        _write_whole(self.plan_path, run.spec.plan)
        spec = trainer_pb2.RunSpec()
        spec.CopyFrom(run.spec)
        spec.ClearField("plan")
        _write_whole(self.spec_path, spec)
        with self.log_path.open("a") as log:
            log.write(f"--- attempt {run.attempt_count}, {datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z\n")
        return self.log_path.stat().st_size

    def next_attempt(self, run: trainer_pb2.Run) -> int:
        """The number of the attempt that begins now, above all that have had the folder.

        Of those a store that came back from a backup may know nothing; their engines, if one still
        lives, are refused by the higher number.
        """
        earlier = 0
        # Who begins replaces a damaged one; of a folder that cannot be read `prepare` says so.
        with suppress(DamagedTokenError, OSError):
            earlier = newest_token(self.path)
        return max(run.attempt_count, earlier) + 1

    def is_of(self, run: trainer_pb2.Run) -> bool:
        """Whether the run's attempt is the last that has had the folder."""
        try:
            return newest_token(self.path) == run.attempt_count
        except (DamagedTokenError, OSError):
            return False

    def has_checkpoint(self) -> bool:
        """Whether an earlier attempt has left something to resume from."""
        return any((self.path / "checkpoints").glob("step-*"))

    def engine_arguments(self) -> list[str]:
        """The engine's command line after its program."""
        arguments = ["--plan", str(self.plan_path), "--spec", str(self.spec_path)]
        arguments += ["--run-directory", str(self.path), "--fencing-token", str(self._token)]
        resumption = ["--told-steps", str(self._told_steps), "--resume"]
        return [*arguments, *resumption] if self.has_checkpoint() else arguments


def _write_whole(path: Path, message: Message) -> None:
    """Writes JSON under a temporary name and renames it, so that no reader sees half a file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json_format.MessageToJson(message) + "\n")
    os.replace(partial, path)
