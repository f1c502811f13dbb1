"""Folders that are either whole or not there, after any crash.

A folder is written under a temporary name, gets a manifest with the checksum of every file, is
flushed to disk and renamed. A reader trusts a folder when its manifest agrees.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

MANIFEST = "manifest.json"
_TEMPORARY = ".tmp"


class CorruptFolderError(Exception):
    """A folder's files do not agree with its manifest."""


def replace_folder(
    destination: Path,
    write: Callable[[Path], None],
    may_replace: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> int:
    """Writes `destination` through `write(folder)`; returns its size in bytes.

    What stood there before stays until the new folder is complete on disk. may_replace: entered for
    the moment in which the new folder takes the old one's place; it may raise. Raises whatever that
    or `write` raises, and then leaves no trace.
    """
    temporary = destination.with_name(f"{destination.name}{_TEMPORARY}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        size_bytes = _write_manifest(temporary)
        _flush(temporary)
        with may_replace():
            if destination.exists():
                shutil.rmtree(destination)
            os.rename(temporary, destination)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush_entry(destination.parent)
    return size_bytes


def remove_unfinished(parent: Path, name: str = "*") -> None:
    """Removes what killed writers of `parent / name` have left; nobody may be writing."""
    for folder in parent.glob(f"{name}{_TEMPORARY}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def replace_file(destination: Path, text: str) -> None:
    """Writes a file that holds either the old text or the new one, after any crash."""
    temporary = destination.with_name(destination.name + _TEMPORARY)
    temporary.write_text(text, encoding="utf-8")
    flush_entry(temporary)
    os.replace(temporary, destination)
    flush_entry(destination.parent)


def verify_folder(folder: Path) -> None:
    """Raises `CorruptFolderError` unless every file has the size and checksum of the manifest."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in listed.items():
            if _entry(folder / name) != expected:
                raise CorruptFolderError(f"{folder / name} is not what was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFolderError(f"{folder} has no readable manifest ({error})") from error


def cached_folder(destination: Path, write: Callable[[Path], None]) -> bool:
    """Makes sure `destination` is whole, writing it if it is not; True when it was there already.

    Safe among processes: a lock lets one of them write while the others wait, and then all use the
    result. The lock ends with its process.
    """
    with _locked(destination):
        try:
            verify_folder(destination)
            return True
        except CorruptFolderError:
            remove_unfinished(destination.parent, destination.name)
            replace_folder(destination, write)
            return False


@contextmanager
def _locked(destination: Path) -> Iterator[None]:
    destination.parent.mkdir(parents=True, exist_ok=True)
    with destination.with_name(destination.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_manifest(folder: Path) -> int:
    files = {str(path.relative_to(folder)): _entry(path) for path in _files(folder)}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=2), encoding="utf-8")
    return sum(path.stat().st_size for path in _files(folder))


def _entry(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flush(folder: Path) -> None:
    for path in [*_files(folder), folder]:
        flush_entry(path)


def flush_entry(path: Path) -> None:
    """What was written to a file, or a folder's list of names, is on the disk after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
