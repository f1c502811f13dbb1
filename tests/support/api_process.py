"""The trainer's API as a process of its own, that can be killed and come back on the same port."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import grpc

from elite.trainer.v1 import trainer_pb2_grpc
from tests.support.trainer_stack import REPOSITORY, TrainerStack

_PATIENCE_SECONDS = 60.0


class ApiProcess:
    """Serves a stack's runs; the stack's `stub` and `address` are its own."""

    def __init__(self, stack: TrainerStack, **settings: object) -> None:
        self._stack = stack
        self._address = f"127.0.0.1:{_free_port()}"
        given = {
            "address": self._address, "sweep_interval_seconds": 0.3, "requeue_after_seconds": 1.5,
            **settings,
        }  # fmt: skip
        self._settings = {
            f"ELITE_TRAINER_API_{name.upper()}": str(value) for name, value in given.items()
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    @property
    def process_id(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns once it answers."""
        with (self._stack.folder / "api.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.trainer.api"], cwd=REPOSITORY, stdout=log,
                stderr=log, env=self._stack.environment() | self._settings,
            )  # fmt: skip
        self._close_channel()
        self._channel = grpc.insecure_channel(self._address)
        grpc.channel_ready_future(self._channel).result(timeout=_PATIENCE_SECONDS)
        self._stack.address = self._address
        self._stack.stub = trainer_pb2_grpc.TrainerServiceStub(self._channel)

    def terminate(self) -> float:
        """SIGTERM; seconds to the exit, which must be a clean one."""
        assert self._process is not None
        started = time.monotonic()
        self._process.terminate()
        assert self._process.wait(_PATIENCE_SECONDS) == 0
        self._process = None
        return time.monotonic() - started

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Ends it."""
        self.kill()
        self._close_channel()

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
