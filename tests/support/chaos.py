"""A whole trainer to break things in: real store, API process, workers, and real engines.

One fault is done to a run at a random moment. Afterwards the run must have ended once, in success,
with the losses and the adapter of a run that was left alone; every checkpoint must be whole and no
engine may be alive.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.durable import CorruptFolderError, verify_folder
from services.trainer.jobs.states import PAUSED, SUCCEEDED, TERMINAL_STATES
from tests.fixtures.engine import (
    LLAMA_LINEARS,
    a_plan,
    tiny_config,
    write_corpus,
    write_tiny_model,
)
from tests.support.api_process import ApiProcess
from tests.support.trainer_stack import TrainerStack, Worker, is_alive
from tests.support.valkey import Valkey

STEPS = 120
_ENGINE = (sys.executable, "-m", "services.trainer.engine")
_LONGEST_SECONDS = 120.0
# From the start of a run to where it is over, on a machine with time: faults fall in there.
_USUAL_SECONDS = 9.0
_BROKEN_MACHINE = Path(__file__).with_name("broken_machine")


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """What a run comes to when it is left alone."""

    losses: Mapping[int, float]
    adapter: str


@dataclass(frozen=True, slots=True)
class Round:
    """What a fault did. problems: empty when nothing was lost."""

    fault: str
    after_seconds: float
    attempts: int
    seconds: float
    problems: list[str]


class ChaosStack(TrainerStack):
    """Its processes run on a machine whose clock jumps and whose disk is full, when told to."""

    @property
    def machine(self) -> Path:
        """The folder that tells the machine."""
        folder = self.folder / "machine"
        folder.mkdir(exist_ok=True)
        return folder

    def environment(self) -> dict[str, str]:
        environment = super().environment()
        path = f"{_BROKEN_MACHINE}{os.pathsep}{environment['PYTHONPATH']}"
        return environment | {"PYTHONPATH": path, "CHAOS_MACHINE": str(self.machine)}


class Chaos:
    """A trainer in a folder, with two workers."""

    def __init__(self, folder: Path) -> None:
        self.valkey = Valkey().start()
        self.stack = ChaosStack(folder, self.valkey)
        write_tiny_model(folder / "models" / "tiny")
        write_corpus(folder / "data" / "code")
        self.api = ApiProcess(self.stack)
        self.api.start()
        for _ in range(2):
            self.start_worker()
        self.undisturbed = self._reference()

    def close(self) -> None:
        """Ends everything."""
        self.api.close()
        self.stack.close()
        self.valkey.close()

    # Parts

    def start_worker(self) -> Worker:
        """One more worker, with the real engine."""
        return self.stack.start_worker(engine_command=shlex.join(_ENGINE))

    def worker_of(self, run_id: str) -> Worker:
        """The living worker that has the run, or any."""
        name = self.stack.get(run_id).worker_name
        alive = [worker for worker in self.stack.workers if worker.process.poll() is None]
        return next((worker for worker in alive if worker.name == name), alive[0])

    def replace(self, worker: Worker) -> None:
        """Another one for a worker that has gone."""
        worker.kill()
        self.stack.workers.remove(worker)
        self.start_worker()

    # Runs

    def create(self) -> str:
        """A run of the tiny model."""
        plan = a_plan(tiny_config(), LLAMA_LINEARS, optimizer=planner_pb2.OPTIMIZER_KIND_ADAMW)
        plan.step_seconds = plan.step_seconds_high = 1.0
        spec = trainer_pb2.RunSpec(
            plan=plan,
            model_path=str(self.stack.folder / "models" / "tiny"),
            data=trainer_pb2.DataSource(path=str(self.stack.folder / "data" / "code")),
            training=trainer_pb2.TrainingSettings(
                steps=STEPS, checkpoint_every_steps=10, evaluation_windows=1, seed=3
            ),
        )
        request = trainer_pb2.CreateRunRequest(spec=spec)
        run_id: str = self.stack.stub.CreateRun(request, timeout=20).run.run_id
        return run_id

    def run(self, name: str, fault: Fault, chance: random.Random) -> Round:
        """One round: a run, a fault at some moment of its life, its end, and what is wrong."""
        started, after = time.monotonic(), chance.uniform(0.0, _USUAL_SECONDS)
        run_id = self.create()
        time.sleep(after)
        problems = list(fault(self, run_id, chance) or ())
        problems += self._end(run_id)
        run = self.stack.get(run_id)
        problems += self._losses(run_id) + self._leftovers(run_id)
        return Round(name, after, run.attempt_count, time.monotonic() - started, problems)

    def _reference(self) -> Undisturbed:
        run_id = self.create()
        problems = self._end(run_id)
        if problems:
            raise RuntimeError(f"{problems}\n{self.stack.describe()}")
        return Undisturbed(self.losses(run_id), self._adapter(run_id))

    def _end(self, run_id: str) -> list[str]:
        """Waits for the run's end; resumes one that was paused."""
        give_up_at = time.monotonic() + _LONGEST_SECONDS
        while time.monotonic() < give_up_at:
            with contextlib.suppress(grpc.RpcError):
                run = self.stack.get(run_id)
                if run.state in TERMINAL_STATES:
                    text = f"ended as {run.state}: {run.error.message}"
                    return [] if run.state == SUCCEEDED else [text]
                if run.state == PAUSED:
                    self.stack.stub.ResumeRun(trainer_pb2.ResumeRunRequest(run_id=run_id))
            time.sleep(0.1)
        return [f"did not end: {self.stack.get(run_id).status_detail}"]

    def losses(self, run_id: str, pause_seconds: float = 0.0) -> dict[int, float]:
        """Of every step, as a watcher is told; one that takes its time over each event, perhaps."""
        steps: dict[int, float] = {}
        for event in self.stack.watch(run_id):
            time.sleep(pause_seconds)
            if event.WhichOneof("event") == "step_completed":
                step = event.step_completed
                # Steps after the last checkpoint run twice, and must come to the same.
                if steps.setdefault(step.step, step.loss) != step.loss:
                    steps[step.step] = float("nan")
        return steps

    def _losses(self, run_id: str) -> list[str]:
        found, problems = self.losses(run_id), []
        if found != self.undisturbed.losses:
            wrong = [s for s, loss in self.undisturbed.losses.items() if found.get(s) != loss]
            problems.append(f"{len(wrong)} losses differ, the first of step {wrong[:1]}")
        if self._adapter(run_id) != self.undisturbed.adapter:
            problems.append("another adapter")
        ends = [
            event.state_changed.to
            for event in self.stack.watch(run_id)
            if event.WhichOneof("event") == "state_changed" and event.state_changed.to == SUCCEEDED
        ]
        return problems if len(ends) == 1 else [*problems, f"{len(ends)} ends in success"]

    def _leftovers(self, run_id: str) -> list[str]:
        folder, problems = self.stack.runs_directory / run_id, []
        for checkpoint in (folder / "checkpoints").glob("step-*[0-9]"):
            try:
                verify_folder(checkpoint)
            except CorruptFolderError as error:
                problems.append(str(error))
        alive = [pid for pid in engines_of(run_id) if is_alive(pid)]
        if alive:
            time.sleep(1.0)  # one that is being reaped
            problems += [f"engine {pid} is alive" for pid in alive if is_alive(pid)]
        return problems

    def _adapter(self, run_id: str) -> str:
        path = self.stack.runs_directory / run_id / "adapter" / "adapter_model.safetensors"
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "none"


def engines_of(run_id: str) -> list[int]:
    """Processes that run an engine for the run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace")
            if "services.trainer.engine" in words and run_id in words:
                found.append(int(path.parent.name))
    return found


# Does something to a run; returns what it found wrong itself.
Fault = Callable[[Chaos, str, random.Random], "list[str] | None"]
