"""Stores give back what was put in, whatever the order of reads, writes and prefetches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.planner import streaming_memory
from services.trainer.engine.memory_tracking import StorageTracker
from services.trainer.engine.streaming import stores
from services.trainer.engine.streaming.page_files import PageFilePlace
from services.trainer.engine.streaming.stores import Field, Pages, Place, make_store
from services.trainer.engine.transfers import Moved
from tests.fixtures.page_files import open_page_files

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FIELDS = (
    Field(lambda tokens: (2, tokens, 3), torch.bfloat16),
    Field(lambda tokens: (2, 4, tokens), torch.float32),
)
TOKENS, COUNT = 5, 4
OPERATIONS = st.lists(
    st.tuples(st.booleans(), st.integers(0, COUNT - 1), st.none() | st.integers(0, COUNT - 1)),
    max_size=30,
)


def tensors(value: int, tokens: int) -> list[torch.Tensor]:
    return [torch.full(f.shape(tokens), value, dtype=f.dtype, device=DEVICE) for f in FIELDS]


@pytest.mark.parametrize("place", Place)
def test_whatever_the_order_a_page_holds_what_was_written_last(
    place: Place, tmp_path: Path
) -> None:
    @settings(max_examples=80, deadline=None)
    @given(OPERATIONS)
    def run(operations: list[tuple[bool, int, int | None]]) -> None:
        store = make_store(Pages(FIELDS, TOKENS, COUNT), DEVICE, place, PageFilePlace(tmp_path))
        held = dict.fromkeys(range(COUNT), -1)
        for page in held:
            store.write(page, TOKENS, tensors(-1, TOKENS))
        for number, (is_write, page, following) in enumerate(operations):
            tokens = TOKENS - page % 2  # odd pages are ragged
            if is_write:
                store.write(page, tokens, tensors(number, tokens))
                held[page] = number
            elif held[page] >= 0:
                found = store.read(page, tokens, following)
                for ours, expected in zip(found, tensors(held[page], tokens), strict=True):
                    torch.testing.assert_close(ours, expected, rtol=0, atol=0)

    run()


@pytest.mark.parametrize("place", Place)
def test_a_store_counts_exactly_what_it_moves(place: Place, tmp_path: Path) -> None:
    pages = Pages(FIELDS, TOKENS, COUNT)
    store = make_store(pages, DEVICE, place, PageFilePlace(tmp_path))
    for page in range(COUNT):
        store.write(page, TOKENS - 1, tensors(page, TOKENS - 1))  # whole pages move all the same
    store.read(0, TOKENS - 1, following=1)
    store.read(1, TOKENS - 1)  # has come already
    store.finish()
    size = pages.page_bytes
    on_bus = {"host_to_device_bytes": 2 * size, "device_to_host_bytes": COUNT * size}
    block = 4096
    on_disk = {"disk_read_bytes": 2 * block, "disk_written_bytes": COUNT * block}
    if place is Place.DISK and DEVICE.type == "cuda":
        # Copies between a buffer and its twin on the device take the whole block.
        on_disk |= {"host_to_device_bytes": 2 * block, "device_to_host_bytes": COUNT * block}
    expected = {Place.DEVICE: {}, Place.HOST: on_bus, Place.DISK: on_disk}
    assert store.moved == Moved(**expected[place])


def test_pages_are_carved_from_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Pages(FIELDS, TOKENS, COUNT)
    for name in ("LARGE_SLAB_BYTES", "SLAB_BYTES"):
        monkeypatch.setattr(stores, name, 3 * pages.page_bytes + 1)
    store = make_store(pages, DEVICE, Place.DEVICE)
    for page in range(COUNT):
        store.write(page, TOKENS, tensors(page, TOKENS))
    for page in range(COUNT):
        assert float(store.read(page, TOKENS)[1].mean()) == page


@given(count=st.integers(1, 200), page_bytes=st.integers(1, 2**31))
def test_slabs_hold_all_pages_and_take_what_is_planned(count: int, page_bytes: int) -> None:
    slabs = list(stores._pages_by_slab(count, page_bytes))
    assert sum(slabs) == count
    assert min(slabs) > 0
    taken = sum(1 << (pages * page_bytes - 1).bit_length() for pages in slabs)
    assert taken == streaming_memory.slabs(count, page_bytes)
    assert taken <= streaming_memory.slabs(count + 1, page_bytes)


def test_host_stores_are_counted_apart() -> None:
    pages = Pages(FIELDS, TOKENS, COUNT)
    cpu = torch.device("cpu")
    with StorageTracker() as tracker:
        store = make_store(pages, cpu, Place.HOST)
    assert tracker.host_peak_bytes == COUNT * pages.page_bytes
    assert tracker.current_bytes == 3 * pages.page_bytes  # two to read, one to write
    del store
    assert tracker.current_bytes == 0


@pytest.mark.parametrize("place", Place)
def test_a_store_that_is_closed_gives_its_file_back(place: Place, tmp_path: Path) -> None:
    store = make_store(Pages(FIELDS, TOKENS, COUNT), DEVICE, place, PageFilePlace(tmp_path))
    store.write(0, TOKENS, tensors(0, TOKENS))
    store.write(1, TOKENS, tensors(1, TOKENS))
    store.read(0, TOKENS, following=1)  # which is still on its way
    assert len(open_page_files(tmp_path)) == (place is Place.DISK)
    store.close()
    assert open_page_files(tmp_path) == []
