"""What is done to a trainer, tests/support/chaos.py, to see whether anything is lost."""

# Faults are called alike, whatever they need.
# ruff: noqa: ARG001

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Mapping

import grpc

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs import keys
from services.trainer.jobs.queue import TASK_NAME, make_celery
from services.trainer.jobs.states import CANCELLED, RUNNING, SUCCEEDED, TERMINAL_STATES
from tests.support.chaos import Chaos, Fault, engines_of
from tests.support.trainer_stack import is_alive, wait_until

_LONGEST_ANSWER_SECONDS = 2.0


def _nothing(chaos: Chaos, run_id: str, chance: random.Random) -> None:
    """The control."""


def _kill_engine(chaos: Chaos, run_id: str, chance: random.Random) -> None:
    for pid in engines_of(run_id):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _kill_pool_child(chaos: Chaos, run_id: str, chance: random.Random) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(chaos.worker_of(run_id).pool_child, signal.SIGKILL)


def _kill_worker(chaos: Chaos, run_id: str, chance: random.Random) -> None:
    worker = chaos.worker_of(run_id)
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.wait()
    chaos.replace(worker)


def _drain_worker(chaos: Chaos, run_id: str, chance: random.Random) -> None:
    worker = chaos.worker_of(run_id)
    worker.terminate()
    chaos.replace(worker)


def _kill_api(chaos: Chaos, run_id: str, chance: random.Random) -> None:
    chaos.api.kill()
    time.sleep(chance.uniform(0, 2))
    chaos.api.start()


def _restart_store(chaos: Chaos, run_id: str, chance: random.Random) -> None:
    # Acknowledged is what one second of the log has on disk (appendfsync everysec).
    time.sleep(1.1)
    chaos.valkey.kill()
    time.sleep(chance.uniform(0, 3))
    chaos.valkey.start()


def _freeze_store(chaos: Chaos, run_id: str, chance: random.Random) -> None:
    chaos.valkey.freeze()
    time.sleep(chance.uniform(1, 8))
    chaos.valkey.thaw()


def _deliver_twice(chaos: Chaos, run_id: str, chance: random.Random) -> None:
    celery = make_celery(chaos.stack.shared_settings())
    for _ in range(3):
        celery.send_task(TASK_NAME, args=[run_id], queue=keys.queue_name("cpu"))
    celery.close()


def _truncate_checkpoint(chaos: Chaos, run_id: str, chance: random.Random) -> None:
    """The newest checkpoint loses its end, and its engine dies."""
    folder = chaos.stack.runs_directory / run_id / "checkpoints"
    _kill_engine(chaos, run_id, chance)
    for checkpoint in sorted(folder.glob("step-*[0-9]"))[-1:]:
        with contextlib.suppress(OSError):
            os.truncate(checkpoint / "adapter_model.safetensors", 100)


def _pause(chaos: Chaos, run_id: str, chance: random.Random) -> None:
    with contextlib.suppress(grpc.RpcError):  # it may have ended
        chaos.stack.stub.PauseRun(trainer_pb2.PauseRunRequest(run_id=run_id))
        wait_until(lambda: chaos.stack.get(run_id).state != RUNNING, "a run that is paused")


def _cancel(chaos: Chaos, run_id: str, chance: random.Random) -> list[str]:
    """Acknowledged at once, no engine left; then resumed."""
    asked_at = time.monotonic()
    chaos.stack.stub.CancelRun(trainer_pb2.CancelRunRequest(run_id=run_id))
    seconds = time.monotonic() - asked_at
    wait_until(lambda: chaos.stack.get(run_id).state in TERMINAL_STATES, "an end")
    problems = [f"engine {pid} is left" for pid in engines_of(run_id) if is_alive(pid)]
    if chaos.stack.get(run_id).state == CANCELLED:
        chaos.stack.stub.ResumeRun(trainer_pb2.ResumeRunRequest(run_id=run_id))
    slow = seconds > _LONGEST_ANSWER_SECONDS
    return [*problems, f"cancelling took {seconds:.1f} s to be acknowledged"] if slow else problems


def _expire_lease(chaos: Chaos, run_id: str, chance: random.Random) -> None:
    """The lease is lost, and somebody else may take the run."""
    with chaos.valkey.client() as client:
        client.delete(keys.lease_key(run_id))
    _deliver_twice(chaos, run_id, chance)


def _freeze_worker(chaos: Chaos, run_id: str, chance: random.Random) -> None:
    """A worker that sleeps through its lease and wakes: its engine meets a newer attempt's."""
    worker = chaos.worker_of(run_id)
    os.kill(worker.pool_child, signal.SIGSTOP)
    child = worker.pool_child
    time.sleep(chance.uniform(4, 8))
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGCONT)


def _vanishing_watchers(chaos: Chaos, run_id: str, chance: random.Random) -> None:
    for _ in range(20):
        call = chaos.stack.stub.WatchRun(trainer_pb2.WatchRunRequest(run_id=run_id))
        with contextlib.suppress(grpc.RpcError):
            next(call)
        call.cancel()


def _expire_visibility(chaos: Chaos, run_id: str, chance: random.Random) -> None:
    """Somebody whose visibility timeout is nought gives out again whatever is being worked on."""
    celery = make_celery(chaos.stack.shared_settings())
    celery.conf.broker_transport_options = {"visibility_timeout": 0}
    with celery.connection() as connection, connection.channel() as channel:
        channel.qos.restore_visible(num=0, interval=1)
    celery.close()


def _fill_disk(chaos: Chaos, run_id: str, chance: random.Random) -> list[str]:
    """No room at the next checkpoint: the run fails, says so, and goes on once there is some."""
    flag = chaos.stack.machine / "disk-full"
    flag.touch()
    wait_until(lambda: chaos.stack.get(run_id).state in TERMINAL_STATES, "an end")
    flag.unlink()
    run = chaos.stack.get(run_id)
    if run.state == SUCCEEDED:  # it had written everything before
        return []
    chaos.stack.stub.ResumeRun(trainer_pb2.ResumeRunRequest(run_id=run_id))
    if run.error.cause == trainer_pb2.FAILURE_CAUSE_DISK_FULL:
        return []
    return [f"a full disk is told as {run.error}"]


def _shift_clock(chaos: Chaos, run_id: str, chance: random.Random) -> None:
    """An hour forward or back, for everybody; it stays."""
    path = chaos.stack.machine / "clock"
    now = float(path.read_text()) if path.exists() else 0.0
    path.with_suffix(".new").write_text(str(now + chance.choice((-3600, 3600))))
    path.with_suffix(".new").replace(path)


def _slow_watcher(chaos: Chaos, run_id: str, chance: random.Random) -> list[str]:
    found = chaos.losses(run_id, pause_seconds=0.03)
    return [] if found == chaos.undisturbed.losses else ["a slow watcher was told otherwise"]


def _stop_store_for_long(chaos: Chaos, run_id: str, chance: random.Random) -> None:
    time.sleep(1.1)
    chaos.valkey.kill()
    time.sleep(90)
    chaos.valkey.start()


FAULTS: Mapping[str, Fault] = {
    "nothing": _nothing,
    "engine killed": _kill_engine,
    "pool child killed": _kill_pool_child,
    "worker killed": _kill_worker,
    "worker drained": _drain_worker,
    "API killed": _kill_api,
    "store killed": _restart_store,
    "store frozen": _freeze_store,
    "delivered three times more": _deliver_twice,
    "checkpoint truncated": _truncate_checkpoint,
    "paused": _pause,
    "cancelled and resumed": _cancel,
    "lease lost": _expire_lease,
    "worker asleep": _freeze_worker,
    "visibility timeout expired": _expire_visibility,
    "disk full": _fill_disk,
    "clock shifted": _shift_clock,
    "watchers vanish": _vanishing_watchers,
    "slow watcher": _slow_watcher,
}

# Too long for every day.
LONG_FAULTS: Mapping[str, Fault] = {"store stopped for 90 s": _stop_store_for_long}
