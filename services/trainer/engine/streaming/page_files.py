"""Pages in a file: memory for activations that costs wear instead of money.

The file is allocated whole when it is made, so that a disk cannot fill up in mid-step, and has no
name, so that nothing is left when the process ends, however it ends. It is read and written past
the page cache, whole pages at a time, by one thread: requests are done in the order they came, and
there are never more than one per buffer. Each page carries a checksum, kept in memory.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from services.trainer.engine.failures import DISK_CORRUPT, DISK_FULL, EngineError
from services.trainer.engine.memory_tracking import counted_as_host
from services.trainer.engine.streaming.copy_stream import CopyStream, Moment

# Direct I/O wants offsets, sizes and addresses in multiples of the disk's block.
BLOCK_BYTES = 4096
_READ_BUFFERS, _WRITE = 2, 2
_WORDS_PER_BLOCK = BLOCK_BYTES // 8


class FilePages:
    """Moves pages between a file and buffers on the device.

    buffers: uint8, two to read and one to write. written_bytes: to the disk, so far.
    """

    def __init__(self, count: int, page_bytes: int, device: torch.device, folder: Path) -> None:
        """Raises `EngineError` (DISK_FULL) when the folder has no room for all pages."""
        self._page_bytes = -(-page_bytes // BLOCK_BYTES) * BLOCK_BYTES
        self._file = _allocated(folder, count * self._page_bytes)
        with counted_as_host() if device.type != "cpu" else nullcontext():
            self._host = [_aligned(self._page_bytes, device) for _ in range(_READ_BUFFERS + 1)]
        self.buffers = self._host
        if device.type != "cpu":
            self.buffers = [torch.empty_like(one, device=device) for one in self._host]
        self._loads, self._saves = CopyStream(device, _READ_BUFFERS), CopyStream(device, 1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="page-file")
        self._requests: list[Future[None] | None] = [None] * len(self._host)
        self._checksums: dict[int, int] = {}
        self.written_bytes = 0

    def load(self, page: int, buffer: int) -> None:
        """Starts to read a page into a buffer."""
        self._request(buffer, self._thread.submit(self._read, page, buffer, self._loads.now()))

    def save(self, page: int, buffer: int) -> None:
        """Starts to write a buffer to a page."""
        self._finish(buffer)
        if self.buffers is not self._host:
            with self._saves.copying(0):
                self._host[buffer].copy_(self.buffers[buffer], non_blocking=True)
        self._request(buffer, self._thread.submit(self._write, page, buffer))

    def wait_for(self, buffer: int) -> None:
        """The computation may use the buffer.

        Raises `EngineError` (DISK_CORRUPT) for a page that is not as it was written, and `OSError`.
        """
        self._finish(buffer)
        if buffer < _READ_BUFFERS:
            self._loads.wait_for(buffer)

    def close(self) -> None:
        """Gives the disk space back."""
        self._thread.shutdown()
        os.close(self._file)

    def _request(self, buffer: int, request: Future[None]) -> None:
        self._finish(buffer)
        self._requests[buffer] = request

    def _finish(self, buffer: int) -> None:
        request, self._requests[buffer] = self._requests[buffer], None
        if request is not None:
            request.result()

    def _write(self, page: int, buffer: int) -> None:
        self._saves.synchronize(0)
        data = self._host[buffer].numpy()
        self._checksums[page] = _checksum(data)
        self._transfer(os.pwritev, page, data)
        self.written_bytes += self._page_bytes

    def _read(self, page: int, buffer: int, free: Moment) -> None:
        if page not in self._checksums:
            return  # fetched ahead and never written: it will be written before it is used
        if buffer < _READ_BUFFERS:
            self._loads.synchronize(buffer)
        data = self._host[buffer].numpy()
        self._transfer(os.preadv, page, data)
        if _checksum(data) != self._checksums[page]:
            problem = f"page {page} of a page file is not what was written to it"
            raise EngineError(DISK_CORRUPT, problem, "check the disk; earlier checkpoints are kept")
        if self.buffers is not self._host:
            with self._loads.copying(buffer, free):
                self.buffers[buffer].copy_(self._host[buffer], non_blocking=True)

    def _transfer(self, function: Any, page: int, data: npt.NDArray[np.uint8]) -> None:
        """preadv or pwritev of a whole page; either may do less than it was asked to."""
        begin, done = page * self._page_bytes, 0
        while done < len(data):
            count = function(self._file, [data[done:]], begin + done)
            if count <= 0:
                raise OSError(f"a page file ended at byte {begin + done}")
            done += count


def _checksum(data: npt.NDArray[np.uint8]) -> int:
    """CRC-32 over the 64-bit sums of all blocks: at memory speed, which CRC-32 alone is not."""
    sums = data.view(np.uint64).reshape(-1, _WORDS_PER_BLOCK).sum(axis=1, dtype=np.uint64)
    return zlib.crc32(sums)


def _allocated(folder: Path, size: int) -> int:
    """Descriptor of a nameless file with all its space."""
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < size:
        problem = f"{folder} has {free:,} free bytes; the plan's page files need {size:,}"
        raise EngineError(DISK_FULL, problem, "free some, or plan with --disk and what is there")
    descriptor = _opened(folder)
    try:
        os.posix_fallocate(descriptor, 0, max(size, 1))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _opened(folder: Path) -> int:
    """Past the page cache where the file system can."""
    descriptor, name = tempfile.mkstemp(prefix="elite-pages-", dir=folder)
    try:
        direct = os.open(name, os.O_RDWR | os.O_DIRECT)
    except OSError:
        return descriptor
    finally:
        os.unlink(name)
    os.close(descriptor)
    return direct


def _aligned(size: int, device: torch.device) -> torch.Tensor:
    """Bytes in host memory from a block boundary on; pinned for another device."""
    memory = torch.empty(size + BLOCK_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    begin = -memory.data_ptr() % BLOCK_BYTES
    return memory[begin : begin + size]
