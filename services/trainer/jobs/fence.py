"""Who may write to a run's folder: the newest attempt.

Every attempt has a fencing token, higher than those before it. The folder holds the token of the
attempt that came last; whoever has a lower one is refused, at the moment it would replace or remove
anything. So an engine that outlives its lease, behind a network that lost its supervisor, does no
harm. The idea: M. Kleppmann, "How to do distributed locking" (2016).

Checks and what they protect happen under one file lock, which ends with its process. On a network
file system the lock must hold across machines, as NFS 4's does.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from services.trainer.jobs.durable import replace_file

# Attempts are counted in 32 bits.
_NO_TOKEN = 2**32 - 1
_TOKEN, _LOCK = ".fencing-token", ".fencing-lock"


class SupersededError(Exception):
    """A newer attempt has the folder."""

    def __init__(self, folder: Path, token: int, newest: int) -> None:
        super().__init__(
            f"{folder} belongs to attempt {newest} by now; this is attempt {token}, which stops"
        )


class DamagedTokenError(Exception):
    """Nobody can tell which attempt has the folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is damaged, so this attempt may not write; ResumeRun begins a new attempt, "
            "which replaces it"
        )


class Fence:
    """One attempt's right to write to a folder. Token 0: an engine that nobody supervises."""

    def __init__(self, folder: Path, token: int) -> None:
        self.folder, self.token = folder, token

    def take(self) -> None:
        """Makes this the newest attempt. Raises `SupersededError` when there is a newer one.

        A damaged token is replaced: whoever takes the folder has just taken up the run, and those
        that did before are refused by the new token. Otherwise no attempt could ever begin again.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with no_attempt_begins(self.folder):
            with suppress(DamagedTokenError):
                self._check()
            replace_file(self.folder / _TOKEN, str(self.token))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no newer attempt begins. Raises `SupersededError` when there is one already.

        Raises `DamagedTokenError` when nobody can tell. Keep it short: a newer attempt waits for
        it.
        """
        with no_attempt_begins(self.folder):
            self._check()
            yield

    def _check(self) -> None:
        newest = newest_token(self.folder)
        if newest > self.token:
            raise SupersededError(self.folder, self.token, newest)


def newest_token(folder: Path) -> int:
    """Of the attempt that has the folder; 0: none has. Raises `DamagedTokenError`."""
    path = folder / _TOKEN
    try:
        token = int(path.read_text())
    except FileNotFoundError:
        return 0
    except ValueError as error:
        raise DamagedTokenError(path) from error
    if not 0 <= token < _NO_TOKEN:
        raise DamagedTokenError(path)
    return token


@contextmanager
def no_attempt_begins(folder: Path) -> Iterator[None]:
    """Inside, no attempt on the run of this folder begins; those that want to wait."""
    with (folder / _LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class OwnedFolder:
    """A folder of one process, for as long as it lives: nobody else gets it meanwhile."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path, self._lock = path, lock

    @classmethod
    def first_free(cls, paths: Iterator[Path]) -> OwnedFolder:
        """The first of the paths that no living process owns. Raises `StopIteration` at the end."""
        while True:
            path = next(paths)
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_name(f".{path.name}.lock").open("a")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            return cls(path, lock)
