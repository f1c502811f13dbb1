"""Tokens, splits and windows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from elite.trainer.v1 import trainer_pb2
from services.trainer.engine.dataset import (
    TokenCache,
    TokenSequence,
    Windows,
    make_dataset,
    split_by_file,
    tokenise,
)
from services.trainer.engine.failures import EngineError
from services.trainer.jobs.corpus import find_source_files
from tests.fixtures.engine import source_text, write_corpus, write_tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tiny_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def a_cache(*counts: int) -> TokenCache:
    tokens = np.arange(sum(counts), dtype=np.uint32)
    paths = tuple(f"file_{index}.py" for index in range(len(counts)))
    return TokenCache(tokens, paths, np.asarray(counts, dtype=np.int64), (), "fingerprint")


def test_the_cache_holds_every_file_and_its_end(tmp_path: Path, tokenizer) -> None:
    corpus = find_source_files(write_corpus(tmp_path / "data", files=3))
    cache = tokenise(corpus, tokenizer, tmp_path / "cache")
    assert cache.tokens.dtype == np.uint16
    for index, file in enumerate(corpus.files):
        part = cache.split([index])
        ids = part.read(0, len(part))
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[:-1]) == file.path.read_text()


def test_the_cache_is_used_again_until_something_changes(tmp_path: Path, tokenizer) -> None:
    data = write_corpus(tmp_path / "data", files=3)
    first = tokenise(find_source_files(data), tokenizer, tmp_path / "cache")
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("tokens.bin")}
    again = tokenise(find_source_files(data), tokenizer, tmp_path / "cache")
    assert again.fingerprint == first.fingerprint
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("tokens.bin")} == written
    (data / "module_0.py").touch()  # as a new clone of the same files
    assert tokenise(find_source_files(data), tokenizer, tmp_path / "cache").fingerprint == (
        first.fingerprint
    )
    (data / "module_0.py").write_text(source_text(99))
    changed = tokenise(find_source_files(data), tokenizer, tmp_path / "cache")
    assert changed.fingerprint != first.fingerprint


def test_a_corrupt_cache_is_written_again(tmp_path: Path, tokenizer) -> None:
    corpus = find_source_files(write_corpus(tmp_path / "data", files=3))
    first = np.array(tokenise(corpus, tokenizer, tmp_path / "cache").tokens)
    (binary,) = (tmp_path / "cache").rglob("tokens.bin")
    binary.write_bytes(b"\0" * binary.stat().st_size)
    np.testing.assert_array_equal(tokenise(corpus, tokenizer, tmp_path / "cache").tokens, first)


def test_text_that_turns_binary_late_is_skipped_by_name(tmp_path: Path, tokenizer) -> None:
    data = write_corpus(tmp_path / "data", files=2)
    (data / "late.py").write_bytes(b"x = 1\n" * 4000 + b"\xff\xfe")
    cache = tokenise(find_source_files(data), tokenizer, tmp_path / "cache")
    assert [(entry.relative_path, entry.reason) for entry in cache.skipped] == [
        ("late.py", "not UTF-8")
    ]
    assert len(cache.paths) == 2


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    class Slow:
        is_fast = False
        eos_token_id = 1

    corpus = find_source_files(write_corpus(tmp_path / "data", files=1))
    with pytest.raises(EngineError, match="no usable fast tokenizer"):
        tokenise(corpus, Slow(), tmp_path / "cache")


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    ends=st.tuples(st.integers(0, 240), st.integers(0, 240)),
)
def test_a_sequence_reads_as_if_its_files_stood_in_a_row(counts, ends) -> None:
    tokens = np.arange(sum(counts), dtype=np.uint16)
    starts = np.cumsum([0, *counts])[:-1]
    odd = list(range(0, len(counts), 2))
    sequence = TokenSequence(tokens, starts[odd], np.asarray(counts)[odd])
    expected = np.concatenate([tokens[starts[i] : starts[i] + counts[i]] for i in odd])
    assert len(sequence) == len(expected)
    begin, end = sorted(min(end, len(expected)) for end in ends)
    if begin < end:
        np.testing.assert_array_equal(sequence.read(begin, end), expected[begin:end])


@given(length=st.integers(0, 300), context=st.integers(1, 20), target=st.integers(1, 20))
def test_every_token_after_the_first_context_is_a_target_once(length, context, target) -> None:
    cache = a_cache(length)
    windows = Windows(cache.split([0]), context, target)
    counted = Counter(token for w in range(len(windows)) for token in windows[w][context:].tolist())
    assert set(counted.values()) <= {1}
    assert len(counted) == max(0, (length - context) // target * target)
    assert sorted(counted) == list(range(context, context + len(counted)))
    assert all(len(windows[index]) == context + target for index in range(len(windows)))


def test_training_order_is_a_new_permutation_each_epoch() -> None:
    windows = Windows(a_cache(110).split([0]), 10, 10)

    def first(position: int, seed: int = 1) -> int:
        return int(windows.in_training_order(position, seed)[0])

    epochs = [[first(epoch * 10 + place) for place in range(10)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(0, 100, 10))
    assert epochs[0] != epochs[1]
    assert epochs[0] != [first(place, seed=2) for place in range(10)]


def test_evaluation_windows_are_spread_and_never_more_than_there_are() -> None:
    windows = Windows(a_cache(110).split([0]), 10, 10)
    assert [int(w[0]) for w in windows.spread(3)] == [0, 40, 90]
    assert len(windows.spread(50)) == 10


@given(
    counts=st.lists(st.integers(1, 400), min_size=1, max_size=30),
    fraction=st.floats(0, 0.5),
    seed=st.integers(0, 3),
)
def test_the_split_starves_neither_part(counts, fraction, seed) -> None:
    window = 100
    training, held_out = split_by_file(
        a_cache(*counts), fraction=fraction, window_tokens=window, seed=seed
    )
    assert sorted(training + held_out) == list(range(len(counts)))
    if held_out:
        assert sum(counts[index] for index in training) >= window
    if fraction == 0:
        assert not held_out


def test_a_file_that_leaves_just_one_window_to_train_on_is_held_out() -> None:
    training, held_out = split_by_file(a_cache(100, 100), fraction=0.5, window_tokens=100, seed=0)
    assert (len(training), len(held_out)) == (1, 1)
    training, held_out = split_by_file(a_cache(99, 99), fraction=0.5, window_tokens=100, seed=0)
    assert (len(training), len(held_out)) == (2, 0)


def test_no_more_is_held_out_than_one_window_when_the_fraction_is_reached() -> None:
    for window, expected in ((100, 1), (101, 2)):
        _, held_out = split_by_file(a_cache(*[100] * 5), fraction=0.2, window_tokens=window, seed=0)
        assert len(held_out) == expected


def test_the_split_follows_names_and_seed_not_order() -> None:
    cache = a_cache(*[50] * 40)
    arguments = {"fraction": 0.2, "window_tokens": 60}
    _, first = split_by_file(cache, seed=1, **arguments)
    _, again = split_by_file(cache, seed=1, **arguments)
    _, other = split_by_file(cache, seed=2, **arguments)
    assert first == again != other
    assert len(first) == 8


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ([60], 0.0, "has 60 tokens; one window of this tier needs 100: give more files"),
        ([150], 0.1, "150 tokens in 1 files, .*held_out_fraction to 0"),
        ([90, 60], 0.1, "150 tokens in 2 files"),
    ],
)
def test_too_short_a_corpus_says_how_short(counts, fraction, expected) -> None:
    with pytest.raises(EngineError, match=expected) as raised:
        make_dataset(a_cache(*counts), context_tokens=80, target_tokens=20,
                     held_out_fraction=fraction, seed=0)  # fmt: skip
    assert raised.value.cause == trainer_pb2.FAILURE_CAUSE_BAD_DATA


def test_one_file_is_enough_when_nothing_is_held_out() -> None:
    dataset = make_dataset(a_cache(100), context_tokens=80, target_tokens=20,
                           held_out_fraction=0.0, seed=0)  # fmt: skip
    assert (len(dataset.training), len(dataset.held_out)) == (1, 0)
