"""Pages of a step in files of the run's directory, for a process that goes on with it.

Pages that nothing changes within a window are written once, as they come; a store that is on a disk
has them there already. The hidden states change with every layer, so that they are written whole,
into two files by turns: the older state is good until the newer one is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from services.trainer.engine.memory_tracking import counted_as_host
from services.trainer.engine.streaming.page_files import (
    PageFile,
    PageFilePlace,
    block_aligned,
    page_file_name,
)
from services.trainer.engine.streaming.stores import Store

# Checksums by page.
Checksums = dict[int, int]
_HIDDEN = "hidden-states"


class KeptPages:
    """The files of one executor's stores."""

    def __init__(self, folder: Path, kept: Mapping[str, Store], hidden: Store) -> None:
        """Raises `EngineError` (DISK_FULL) without room for them."""
        self._kept, self._hidden = kept, hidden
        self._files = {
            name: store.file or _file(folder, name, store) for name, store in kept.items()
        }
        self._turns = [_file(folder, f"{_HIDDEN}-{turn}", hidden) for turn in (0, 1)]

    def save(self, turn: int) -> tuple[dict[str, Checksums], int]:
        """Everything is on the disk when this returns: checksums by file, and bytes written."""
        before = self._written_bytes()
        saved = {}
        for name, store in self._kept.items():
            file = self._files[name]
            store.finish()
            if store.file is None:
                _copy_out(store, file, store.changed)
            store.changed.clear()
            file.flush()
            saved[name] = dict(file.checksums)
        self._hidden.finish()
        file = self._turns[turn]
        file.checksums.clear()
        _copy_out(self._hidden, file, self._hidden.changed)
        file.flush()
        return saved | {_HIDDEN: dict(file.checksums)}, self._written_bytes() - before

    def restore(self, turn: int, saved: Mapping[str, Checksums]) -> None:
        """Fills the stores. Raises `EngineError` (DISK_CORRUPT) for a page that has changed."""
        for name, store in self._kept.items():
            self._files[name].checksums = dict(saved[name])
            if store.file is None:
                _copy_in(store, self._files[name])
        self._turns[turn].checksums = dict(saved[_HIDDEN])
        _copy_in(self._hidden, self._turns[turn])
        self._hidden.changed.update(saved[_HIDDEN])

    def forget(self) -> None:
        """Another window begins: no page is of it yet."""
        for file in self._files.values():
            file.checksums.clear()

    def _written_bytes(self) -> int:
        return sum(file.written_bytes for file in [*self._files.values(), *self._turns])


def _file(folder: Path, name: str, store: Store) -> PageFile:
    layout = store.layout
    return PageFile(layout.count, layout.page_bytes, PageFilePlace(folder, page_file_name(name)))


def _copy_out(store: Store, file: PageFile, pages: set[int]) -> None:
    staging_n = _staging(file)
    for page in sorted(pages):
        bytes_n = store.page(page)
        staging_n[: len(bytes_n)].copy_(bytes_n)
        file.write(page, staging_n.numpy())


def _copy_in(store: Store, file: PageFile) -> None:
    staging_n = _staging(file)
    for page in file.checksums:
        file.read(page, staging_n.numpy())
        store.set_page(page, staging_n[: store.layout.page_bytes])


def _staging(file: PageFile) -> torch.Tensor:
    with counted_as_host():
        return block_aligned(file.page_bytes, torch.device("cpu"))
