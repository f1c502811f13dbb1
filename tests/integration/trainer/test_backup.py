"""What docs/how-to/backup.md says about Redis."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.support.valkey import Valkey

PATIENCE_SECONDS = 20.0


@contextmanager
def store(backup: Path | None = None, **options: str) -> Iterator[Valkey]:
    """A store of its own, started on a copy of `backup`."""
    valkey = Valkey(**options)
    if backup is not None:
        copy = shutil.copytree if backup.is_dir() else shutil.copy
        copy(backup, valkey.directory / backup.name)
    try:
        yield valkey.start()
    finally:
        valkey.close()


def wait_for(client: redis.Redis, name: str, value: int) -> None:
    """Until `info persistence` says so."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while client.info("persistence")[name] != value:
        assert time.monotonic() < give_up_at, f"{name} never was {value}"
        time.sleep(0.02)


def test_the_append_only_files_are_copied_while_it_runs_and_restored(tmp_path: Path) -> None:
    with store() as running, running.client() as client:
        client.set("run", "one")
        client.bgrewriteaof()
        client.set("run", "two")
        client.config_set("auto-aof-rewrite-percentage", 0)
        wait_for(client, "aof_rewrite_in_progress", 0)
        copied = shutil.copytree(running.directory / "appendonlydir", tmp_path / "appendonlydir")
    with store(copied) as restored, restored.client() as client:
        assert client.get("run") == b"two"


def test_a_dump_alone_is_not_looked_at_unless_it_is_read_first(tmp_path: Path) -> None:
    with store() as running, running.client() as client:
        client.set("run", "one")
        client.save()
        shutil.copy(running.directory / "dump.rdb", tmp_path)
    dump = tmp_path / "dump.rdb"
    with store(dump) as empty, empty.client() as client:
        assert client.get("run") is None
    with store(dump, appendonly="no") as restored, restored.client() as client:
        assert client.get("run") == b"one"
        client.config_set("appendonly", "yes")
        wait_for(client, "aof_enabled", 1)
        wait_for(client, "aof_rewrite_in_progress", 0)
        wait_for(client, "aof_rewrite_scheduled", 0)
        restored.kill()
        restored.options["--appendonly"] = "yes"
        restored.start()
        assert restored.client().get("run") == b"one"
