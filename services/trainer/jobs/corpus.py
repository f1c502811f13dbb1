"""Finds the text files of a training corpus. Imports no torch: the API runs it at submission.

The walk is the same on every machine: names are sorted, links are never followed, and what a file
is follows from its bytes, not from its suffix.
"""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

# A source file is smaller than this; what is larger is generated data.
MAX_FILE_BYTES = 16 * 1024 * 1024
# Enough to tell text from binary without reading a whole tree.
SNIFFED_BYTES = 8 * 1024

BINARY = "binary"
NOT_UTF8 = "not UTF-8"
EMPTY = "empty"
TOO_LARGE = f"larger than {MAX_FILE_BYTES // 1024**2} MiB"
SYMBOLIC_LINK = "symbolic link"
SPECIAL = "not a regular file"
UNREADABLE = "unreadable"


class CorpusError(Exception):
    """The data path cannot be trained on. `problem` says why and `fix` what to do."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}: {fix}")
        self.problem = problem
        self.fix = fix


@dataclass(frozen=True)
class SourceFile:
    """One text file of the corpus. `relative_path` uses "/" on every system."""

    path: Path
    relative_path: str
    size_bytes: int
    modified_nanoseconds: int


@dataclass(frozen=True)
class SkippedFile:
    """One file that was asked for and left out, and why."""

    relative_path: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """The text files below `root`, sorted by path, and those left out."""

    root: Path
    files: tuple[SourceFile, ...]
    skipped: tuple[SkippedFile, ...]


def find_source_files(
    path: str | Path, include_globs: Sequence[str] = (), exclude_globs: Sequence[str] = ()
) -> Corpus:
    """Lists the text files of a folder (or one file), in a fixed order.

    `include_globs` match a file's name or its path below `path`; none means every text file.
    `exclude_globs` match the path below `path`, of a file or of a whole folder. Hidden files and
    folders and `__pycache__` are left out without mention.

    Raises `CorpusError` when the path is missing or holds no text file.
    """
    root = _resolved(path)
    found = list(_walk(root, include_globs, exclude_globs))
    files = tuple(entry for entry in found if isinstance(entry, SourceFile))
    skipped = tuple(entry for entry in found if isinstance(entry, SkippedFile))
    if not files:
        raise _nothing_found(path, skipped)
    return Corpus(root, files, skipped)


def require_source_files(
    path: str | Path,
    include_globs: Sequence[str] = (),
    exclude_globs: Sequence[str] = (),
    *,
    enough_bytes: int = 1,
) -> int:
    """Bytes of text found, looking no further than `enough_bytes`; by default the first file.

    Raises `CorpusError` as `find_source_files` does.
    """
    skipped: list[SkippedFile] = []
    found_bytes = 0
    for entry in _walk(_resolved(path), include_globs, exclude_globs):
        if isinstance(entry, SkippedFile):
            skipped.append(entry)
            continue
        found_bytes += entry.size_bytes
        if found_bytes >= enough_bytes:
            break
    if not found_bytes:
        raise _nothing_found(path, skipped)
    return found_bytes


def _resolved(path: str | Path) -> Path:
    fix = "give a folder of source files on the trainer's machine"
    try:
        root = Path(path).resolve(strict=True)
    except FileNotFoundError:
        raise CorpusError(f"{path} does not exist", fix) from None
    except (OSError, RuntimeError) as error:  # a link loop is either, by Python version
        raise CorpusError(f"{path} cannot be opened ({error})", fix) from None
    if not (root.is_dir() or root.is_file()):
        raise CorpusError(f"{path} is neither a folder nor a file", fix)
    if not os.access(root, os.R_OK | (os.X_OK if root.is_dir() else 0)):
        raise CorpusError(f"{path} may not be read", "let the trainer's user read it")
    return root


def _nothing_found(path: str | Path, skipped: Sequence[SkippedFile]) -> CorpusError:
    counts: dict[str, int] = {}
    for entry in skipped:
        counts[entry.reason] = counts.get(entry.reason, 0) + 1
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    problem = f"{path} holds no text file to train on" + (f" ({left_out})" if left_out else "")
    return CorpusError(problem, "give a folder with UTF-8 source files, or widen the patterns")


def _walk(
    root: Path, include_globs: Sequence[str], exclude_globs: Sequence[str]
) -> Iterator[SourceFile | SkippedFile]:
    if root.is_file():
        yield _examine(root, root.name)
        return
    pending = [(root, "")]
    while pending:
        folder, prefix = pending.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            yield SkippedFile(prefix, UNREADABLE)
            continue
        subfolders = []
        for entry in entries:
            relative_path = prefix + entry.name
            if entry.name.startswith(".") or _is_excluded(relative_path, exclude_globs):
                continue
            if entry.is_dir(follow_symlinks=False):
                if not _is_pruned(entry.name, relative_path, exclude_globs):
                    subfolders.append((Path(entry.path), relative_path + "/"))
            elif _is_included(entry.name, relative_path, include_globs):
                yield _examine(Path(entry.path), relative_path)
        pending.extend(reversed(subfolders))


def _is_excluded(relative_path: str, globs: Sequence[str]) -> bool:
    return any(fnmatch(relative_path, pattern) for pattern in globs)


def _is_pruned(name: str, relative_path: str, globs: Sequence[str]) -> bool:
    """Whether everything below the folder is left out, so that it need not be entered."""
    whole_folder = (pattern for pattern in globs if pattern.endswith("*"))
    return name == "__pycache__" or any(fnmatch(relative_path + "/", p) for p in whole_folder)


def _is_included(name: str, relative_path: str, globs: Sequence[str]) -> bool:
    return not globs or any(fnmatch(name, p) or fnmatch(relative_path, p) for p in globs)


def _examine(path: Path, relative_path: str) -> SourceFile | SkippedFile:
    try:
        status = path.lstat()
        reason = _unfit(path, status)
    except OSError:
        return SkippedFile(relative_path, UNREADABLE)
    if reason:
        return SkippedFile(relative_path, reason)
    return SourceFile(path, relative_path, status.st_size, status.st_mtime_ns)


def _unfit(path: Path, status: os.stat_result) -> str:
    """Why a file is left out; empty when it is text as far as its first bytes tell."""
    if stat.S_ISLNK(status.st_mode):
        return SYMBOLIC_LINK
    if not stat.S_ISREG(status.st_mode):
        return SPECIAL
    if status.st_size == 0:
        return EMPTY
    if status.st_size > MAX_FILE_BYTES:
        return TOO_LARGE
    with path.open("rb") as file:
        head = file.read(SNIFFED_BYTES)
    return why_not_text(head, is_whole=len(head) == status.st_size)


def why_not_text(content: bytes, *, is_whole: bool) -> str:
    """Why bytes are not text; empty when they are.

    `is_whole=False` says that the content was cut off, perhaps inside a character.
    """
    if b"\0" in content:
        return BINARY
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content, final=is_whole)
    except UnicodeDecodeError:
        return NOT_UTF8
    return ""
