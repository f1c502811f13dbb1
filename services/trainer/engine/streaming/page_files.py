"""Pages in a file: memory for activations that costs wear instead of money.

The file is allocated whole when it is made, so that a disk cannot fill up in mid-step. It is read
and written past the page cache, whole pages at a time. Each page has a checksum, kept in memory.
Most files have no name, so that nothing is left when the process ends, however it ends; those of a
step that may have to go on in another process have one.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from services.trainer.engine.failures import DISK_CORRUPT, DISK_FULL, EngineError
from services.trainer.engine.memory_tracking import counted_as_host
from services.trainer.engine.streaming.copy_stream import CopyStream, Moment
from services.trainer.engine.transfers import Moved

# Direct I/O wants offsets, sizes and addresses in multiples of the disk's block.
BLOCK_BYTES = 4096
_READ_BUFFERS, _WRITE = 2, 2
_WORDS_PER_BLOCK = BLOCK_BYTES // 8


@dataclass(frozen=True, slots=True)
class PageFilePlace:
    """Where a page file is. name: in the folder; a file of that name and size is used again."""

    folder: Path
    name: str = ""


def page_file_name(store: str) -> str:
    """File name of a store's pages."""
    return f"{store}.pages"


class PageFile:
    """Numbered pages of `page_bytes`, in whole blocks.

    checksums: of every page written; read_bytes, written_bytes: so far. Memory is read and written
    from a block boundary on (`block_aligned`).
    """

    def __init__(self, count: int, page_bytes: int, place: PageFilePlace) -> None:
        """Raises `EngineError` (DISK_FULL) when the folder has no room for all pages."""
        self.page_bytes = -(-page_bytes // BLOCK_BYTES) * BLOCK_BYTES
        self.checksums: dict[int, int] = {}
        self.read_bytes = self.written_bytes = 0
        self._file = _allocated(place, count * self.page_bytes)

    def write(self, page: int, data: npt.NDArray[np.uint8]) -> None:
        """Writes a page. Raises `OSError`."""
        self.checksums[page] = _checksum(data)
        self._transfer(os.pwritev, page, data)
        self.written_bytes += self.page_bytes

    def read(self, page: int, data: npt.NDArray[np.uint8]) -> None:
        """Fills `data` with a page that was written.

        Raises `EngineError` (DISK_CORRUPT) for one that is not as it was written, and `OSError`.
        """
        self._transfer(os.preadv, page, data)
        self.read_bytes += self.page_bytes
        if _checksum(data) != self.checksums[page]:
            problem = f"page {page} of a page file is not what was written to it"
            raise EngineError(DISK_CORRUPT, problem, "check the disk; earlier checkpoints are kept")

    def flush(self) -> None:
        """What was written is on the disk when this returns."""
        os.fsync(self._file)

    def close(self) -> None:
        """Gives the disk space of a nameless file back."""
        os.close(self._file)

    def _transfer(self, function: Any, page: int, data: npt.NDArray[np.uint8]) -> None:
        """preadv or pwritev of a whole page; either may do less than it was asked to."""
        begin, done = page * self.page_bytes, 0
        while done < len(data):
            count = function(self._file, [data[done:]], begin + done)
            if count <= 0:
                raise OSError(f"a page file ended at byte {begin + done}")
            done += count


class FilePages:
    """Moves pages between a file and buffers on the device.

    One thread does the requests in the order they came, never more than one per buffer. buffers:
    uint8, two to read and one to write.
    """

    def __init__(self, file: PageFile, device: torch.device) -> None:
        self.file = file
        with counted_as_host() if device.type != "cpu" else nullcontext():
            self._host = [block_aligned(file.page_bytes, device) for _ in range(_READ_BUFFERS + 1)]
        self.buffers = self._host
        if device.type != "cpu":
            self.buffers = [torch.empty_like(one, device=device) for one in self._host]
        self._loads, self._saves = CopyStream(device, _READ_BUFFERS), CopyStream(device, 1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="page-file")
        self._requests: list[Future[None] | None] = [None] * len(self._host)

    @property
    def moved(self) -> Moved:
        """So far. Where the device is the host itself, the disk reads from and writes to it."""
        return Moved(
            host_to_device_bytes=self._loads.copied_bytes,
            device_to_host_bytes=self._saves.copied_bytes,
            disk_read_bytes=self.file.read_bytes,
            disk_written_bytes=self.file.written_bytes,
        )

    def load(self, page: int, buffer: int) -> None:
        """Starts to read a page into a buffer."""
        self._request(buffer, self._thread.submit(self._read, page, buffer, self._loads.now()))

    def save(self, page: int, buffer: int) -> None:
        """Starts to write a buffer to a page."""
        self._finish(buffer)
        if self.buffers is not self._host:
            self._saves.copy([(self._host[buffer], self.buffers[buffer])], 0)
        self._request(buffer, self._thread.submit(self._write, page, buffer))

    def wait_for(self, buffer: int) -> None:
        """The computation may use the buffer.

        Raises `EngineError` (DISK_CORRUPT) for a page that is not as it was written, and `OSError`.
        """
        self._finish(buffer)
        if buffer < _READ_BUFFERS:
            self._loads.wait_for(buffer)

    def page(self, page: int) -> torch.Tensor:
        """A page's bytes, in host memory; good until the next request. No request may be open."""
        self.finish()
        self.file.read(page, self._host[0].numpy())
        return self._host[0]

    def set_page(self, page: int, bytes_n: torch.Tensor) -> None:
        """Fills a page. No request may be open."""
        self.finish()
        self._host[0][: len(bytes_n)].copy_(bytes_n)
        self.file.write(page, self._host[0].numpy())

    def finish(self) -> None:
        """Every request so far is done when this returns."""
        for buffer in range(len(self._requests)):
            self._finish(buffer)

    def close(self) -> None:
        """Ends the thread, and gives the disk space back. Says nothing of requests that failed."""
        self._thread.shutdown()
        for buffer in range(_READ_BUFFERS):
            self._loads.synchronize(buffer)  # what was fetched ahead is still on its way
        self.file.close()

    def _request(self, buffer: int, request: Future[None]) -> None:
        self._finish(buffer)
        self._requests[buffer] = request

    def _finish(self, buffer: int) -> None:
        request, self._requests[buffer] = self._requests[buffer], None
        if request is not None:
            request.result()

    def _write(self, page: int, buffer: int) -> None:
        self._saves.synchronize(0)
        self.file.write(page, self._host[buffer].numpy())

    def _read(self, page: int, buffer: int, free: Moment) -> None:
        if page not in self.file.checksums:
            return  # fetched ahead and never written: it will be written before it is used
        if buffer < _READ_BUFFERS:
            self._loads.synchronize(buffer)
        self.file.read(page, self._host[buffer].numpy())
        if self.buffers is not self._host:
            self._loads.copy([(self.buffers[buffer], self._host[buffer])], buffer, free)


def _checksum(data: npt.NDArray[np.uint8]) -> int:
    """CRC-32 over the 64-bit sums of all blocks: at memory speed, which CRC-32 alone is not."""
    sums = data.view(np.uint64).reshape(-1, _WORDS_PER_BLOCK).sum(axis=1, dtype=np.uint64)
    return zlib.crc32(sums)


def block_aligned(size: int, device: torch.device) -> torch.Tensor:
    """Bytes in host memory from a block boundary on; pinned for another device."""
    memory = torch.empty(size + BLOCK_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    begin = -memory.data_ptr() % BLOCK_BYTES
    return memory[begin : begin + size]


def _allocated(place: PageFilePlace, size: int) -> int:
    """Descriptor of a file with all its space."""
    descriptor, has_space = _opened(place, size)
    try:
        if not has_space:
            _check_room(place.folder, size)
            os.posix_fallocate(descriptor, 0, max(size, 1))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_room(folder: Path, size: int) -> None:
    free = _free_bytes(folder)
    if free < size:
        problem = f"{folder} has {free:,} free bytes; the plan's page files need {size:,}"
        raise EngineError(DISK_FULL, problem, "free some, or plan with --disk and what is there")


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _opened(place: PageFilePlace, size: int) -> tuple[int, bool]:
    """Descriptor, past the page cache where the file system can; whether it has its space."""
    place.folder.mkdir(parents=True, exist_ok=True)
    if not place.name:
        descriptor, name = tempfile.mkstemp(prefix="elite-pages-", dir=place.folder)
        try:
            return _direct(descriptor, name), False
        finally:
            os.unlink(name)
    path = place.folder / place.name
    if path.exists() and path.stat().st_size != max(size, 1):
        path.unlink()  # another plan's
    has_space = path.exists()
    return _direct(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), path), has_space


def _direct(descriptor: int, path: Path | str) -> int:
    try:
        direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError:
        return descriptor
    os.close(descriptor)
    return direct
