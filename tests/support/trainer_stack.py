"""The trainer as it runs: a real store, a real API server, real workers, and a fake engine."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from elite.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from services.common.local import serve_locally
from services.trainer.api.servicer import trainer_service
from services.trainer.api.settings import TrainerApiSettings
from services.trainer.settings import TrainerSettings
from tests.support.run_specs import a_spec, write_corpus
from tests.support.valkey import Valkey

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")
PATIENCE_SECONDS = 60.0

LEASE_SECONDS = 3.0
PRESENCE_SECONDS = 2.0


class TrainerStack:
    """One trainer in one folder. Everything started here ends with `close`."""

    def __init__(self, folder: Path, valkey: Valkey) -> None:
        self.folder = folder
        self.valkey = valkey
        self.data = write_corpus(folder / "data" / "corpus")
        self.runs_directory = folder / "runs"
        self._closing = contextlib.ExitStack()
        self.workers: list[Worker] = []
        self.address = ""
        self.stub: trainer_pb2_grpc.TrainerServiceStub

    def shared_settings(self) -> TrainerSettings:
        return TrainerSettings(
            redis_url=self.valkey.url,
            runs_directory=self.runs_directory,
            data_roots=(self.folder / "data",),
            model_roots=(self.folder / "models",),
            lease_seconds=LEASE_SECONDS,
            worker_presence_seconds=PRESENCE_SECONDS,
        )

    def start_api(self, **changes: object) -> None:
        settings = TrainerApiSettings(
            address="127.0.0.1:0",
            trainer=self.shared_settings(),
            sweep_interval_seconds=0.3,
            requeue_after_seconds=1.5,
            shutdown_grace_seconds=1,
            **changes,  # type: ignore[arg-type]
        )
        self.address = self._closing.enter_context(
            serve_locally(trainer_service(settings), settings)
        )
        channel = self._closing.enter_context(grpc.insecure_channel(self.address))
        self.stub = trainer_pb2_grpc.TrainerServiceStub(channel)

    def start_worker(self, **settings: object) -> Worker:
        worker = Worker(self, len(self.workers), {**_WORKER_SETTINGS, **settings})
        self.workers.append(worker)
        wait_until(lambda: worker.is_present, f"{worker.name} to be present", worker.log)
        return worker

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self._closing.close()

    def environment(self) -> dict[str, str]:
        shared = self.shared_settings()
        return {
            **os.environ,
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'protos'}",
            "ELITE_TRAINER_REDIS_URL": shared.redis_url,
            "ELITE_TRAINER_RUNS_DIRECTORY": str(shared.runs_directory),
            "ELITE_TRAINER_DATA_ROOTS": str(self.folder / "data"),
            "ELITE_TRAINER_MODEL_ROOTS": str(self.folder / "models"),
            "ELITE_TRAINER_LEASE_SECONDS": str(shared.lease_seconds),
            "ELITE_TRAINER_WORKER_PRESENCE_SECONDS": str(shared.worker_presence_seconds),
        }

    def create(self, orders: str = "succeed", steps: int = 3, request_id: str = "") -> str:
        spec = a_spec(self.data, orders, steps)
        request = trainer_pb2.CreateRunRequest(request_id=request_id, spec=spec)
        run_id: str = self.stub.CreateRun(request, timeout=10).run.run_id
        return run_id

    def get(self, run_id: str) -> trainer_pb2.Run:
        run: trainer_pb2.Run = self.stub.GetRun(
            trainer_pb2.GetRunRequest(run_id=run_id), timeout=10
        ).run
        return run

    def watch(self, run_id: str, cursor: str = "") -> Iterator[trainer_pb2.RunEvent]:
        request = trainer_pb2.WatchRunRequest(run_id=run_id, cursor=cursor)
        for response in self.stub.WatchRun(request, timeout=PATIENCE_SECONDS):
            yield response.event

    def watch_aside(self, run_id: str) -> tuple[threading.Thread, list[trainer_pb2.RunEvent]]:
        """A thread that watches the run to its end, and the events it has seen."""
        seen: list[trainer_pb2.RunEvent] = []
        watcher = threading.Thread(target=lambda: seen.extend(self.watch(run_id)))
        watcher.start()
        return watcher, seen

    def steps_of(self, run_id: str) -> list[int]:
        """The steps that the run's events tell of, until it ends."""
        events = self.watch(run_id)
        return [one.step_completed.step for one in events if one.HasField("step_completed")]

    def wait_for(self, run_id: str, *states: trainer_pb2.RunState) -> trainer_pb2.Run:
        def arrived() -> bool:
            return self.get(run_id).state in states

        wait_until(arrived, f"run {run_id} to be {states}", self.describe)
        return self.get(run_id)

    def wait_for_steps(self, run_id: str, steps: int) -> None:
        def arrived() -> bool:
            return self.get(run_id).progress.completed_steps >= steps

        wait_until(arrived, f"{steps} steps", self.describe)

    def engine_pid(self, run_id: str) -> int:
        path = self.runs_directory / run_id / "engine.pid"
        wait_until(lambda: path.exists() and bool(path.read_text()), "an engine", self.describe)
        return int(path.read_text())

    def starts(self, run_id: str) -> list[str]:
        """One line per start of an engine for this run."""
        return (self.runs_directory / run_id / "starts").read_text().splitlines()

    def describe(self) -> str:
        return "\n".join(worker.log() for worker in self.workers)


class Worker:
    """A real `celery worker` process, in a process group of its own."""

    def __init__(self, stack: TrainerStack, number: int, settings: dict[str, object]) -> None:
        self.name = f"worker{number}@test"
        self._valkey = stack.valkey
        self._log_path = stack.folder / f"worker-{number}.log"
        engine = shlex.join([sys.executable, str(FAKE_ENGINE)])
        environment = {**stack.environment(), "ELITE_TRAINER_WORKER_ENGINE_COMMAND": engine}
        for name, value in settings.items():
            environment[f"ELITE_TRAINER_WORKER_{name.upper()}"] = str(value)
        celery = [sys.executable, "-m", "celery", "-A", "services.trainer.worker.app"]
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*celery, "worker", *_POOL, "-n", self.name],
                cwd=REPOSITORY,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def is_present(self) -> bool:
        with self._valkey.client() as client:
            return client.zscore("elite:workers", self.name) is not None

    @property
    def pool_child(self) -> int:
        """Process id of the pool's only child."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        wait_until(lambda: len(path.read_text().split()) == 1, "one pool child", self.log)
        return int(path.read_text())

    def terminate(self) -> int:
        """SIGTERM to the main process alone, as a container's end; waits for the exit."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def log(self) -> str:
        return self._log_path.read_text(errors="replace")


# Workers have nothing to tell one another; looking for neighbours costs a second at the start.
_POOL = ("-P", "prefork", "-c", "1", "--without-mingle", "--without-gossip")

_WORKER_SETTINGS: dict[str, object] = {
    "poll_seconds": 0.1,
    "heartbeat_seconds": 0.3,
    "cancel_grace_seconds": 1.0,
    "drain_grace_seconds": 10.0,
}


def wait_until(
    condition: Callable[[], bool],
    what: str,
    describe: Callable[[], str] = str,
    patience_seconds: float = PATIENCE_SECONDS,
) -> None:
    """Polls until `condition` holds. Raises `TimeoutError` with `describe()` when it never does."""
    give_up_at = time.monotonic() + patience_seconds
    while time.monotonic() < give_up_at:
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError(f"waited in vain for {what}\n{describe()}")


def is_alive(process_id: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
