"""From text files to token windows: tokenised once, memory-mapped, split by file.

The token cache knows nothing of tiers, seeds or splits: one cache of a corpus serves every run with
the same tokenizer. A split is a list of files, and reads as if their tokens stood in a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from services.trainer.engine.failures import BAD_DATA, BAD_MODEL, EngineError
from services.trainer.jobs.corpus import Corpus, SkippedFile, SourceFile, why_not_text
from services.trainer.jobs.durable import MANIFEST, cached_folder

# Text handed to the tokenizer at a time: enough for its threads, little for memory.
BATCH_BYTES = 4 * 1024 * 1024
# Raised when the layout of the cache changes.
CACHE_VERSION = 1

Tokens = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class TokenCache:
    """All tokens of a corpus, each file followed by the end-of-sequence token."""

    tokens: Tokens
    paths: tuple[str, ...]
    token_counts: npt.NDArray[np.int64]
    skipped: tuple[SkippedFile, ...]
    fingerprint: str

    def split(self, files: Sequence[int]) -> TokenSequence:
        """The tokens of some files, given by index, in a row."""
        starts = np.concatenate(([0], np.cumsum(self.token_counts)))
        chosen = np.asarray(files, dtype=np.int64)
        return TokenSequence(self.tokens, starts[chosen], self.token_counts[chosen])


class TokenSequence:
    """Pieces of one token array, read as one sequence."""

    def __init__(
        self, tokens: Tokens, starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
    ) -> None:
        self._tokens = tokens
        self._starts = starts
        self._ends = np.cumsum(counts)  # in the sequence
        self._begins = self._ends - counts

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, begin: int, end: int) -> npt.NDArray[np.int64]:
        """Tokens [begin, end) of the sequence."""
        pieces = []
        piece = int(np.searchsorted(self._ends, begin, side="right"))
        while begin < end:
            stop = min(end, int(self._ends[piece]))
            offset = int(self._starts[piece] - self._begins[piece])
            pieces.append(self._tokens[begin + offset : stop + offset])
            begin, piece = stop, piece + 1
        return np.concatenate(pieces).astype(np.int64)


@dataclass(frozen=True)
class Windows:
    """Training windows over a sequence: `context_tokens` to read, `target_tokens` to predict.

    Windows start `target_tokens` apart, so that after the first context every token is a target
    exactly once (save a rest shorter than one target).
    """

    sequence: TokenSequence
    context_tokens: int
    target_tokens: int

    def __len__(self) -> int:
        spare = len(self.sequence) - self.context_tokens
        return max(0, spare // self.target_tokens)

    def __getitem__(self, index: int) -> npt.NDArray[np.int64]:
        begin = index * self.target_tokens
        return self.sequence.read(begin, begin + self.context_tokens + self.target_tokens)

    def in_training_order(self, position: int, seed: int) -> npt.NDArray[np.int64]:
        """The window at a position of an endless run: each epoch is a new seeded permutation."""
        epoch, place = divmod(position, len(self))
        order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(len(self))
        return self[int(order[place])]

    def spread(self, count: int) -> list[npt.NDArray[np.int64]]:
        """At most `count` windows, evenly spread; always the same ones."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int))
        return [self[int(index)] for index in chosen]


@dataclass(frozen=True)
class Dataset:
    """What a run trains on and what it is evaluated on (`held_out` may be empty)."""

    training: Windows
    held_out: Windows
    file_count: int
    token_count: int
    skipped: tuple[SkippedFile, ...]
    # Of everything that decides which tokens come when; a checkpoint keeps it.
    fingerprint: str


def tokenise(corpus: Corpus, tokenizer: Any, cache_directory: Path) -> TokenCache:
    """Tokenises a corpus, or takes it from the cache when neither files nor tokenizer changed.

    Raises `EngineError` (BAD_MODEL) for a tokenizer that is slow or has no end-of-sequence token,
    and (BAD_DATA) when no file turns out to be text.
    """
    if not getattr(tokenizer, "is_fast", False) or tokenizer.eos_token_id is None:
        fix = "add a tokenizer.json whose special tokens name an end-of-sequence token"
        raise EngineError(BAD_MODEL, "the model has no usable fast tokenizer", fix)
    definition = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    described = [CACHE_VERSION, str(corpus.root), definition, tokenizer.eos_token_id]
    described += [(f.relative_path, f.size_bytes, f.modified_nanoseconds) for f in corpus.files]
    fingerprint = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    folder = cache_directory / f"tokens-{fingerprint[:32]}"
    cached_folder(folder, lambda temporary: _write_cache(corpus, tokenizer, temporary))
    return _read_cache(folder, corpus)


def _write_cache(corpus: Corpus, tokenizer: Any, folder: Path) -> None:
    token_type = np.uint16 if len(tokenizer) <= np.iinfo(np.uint16).max + 1 else np.uint32
    files: list[tuple[str, int]] = []
    skipped: list[tuple[str, str]] = []
    with (folder / "tokens.bin").open("wb") as out:
        for batch in _batches(_texts(corpus.files, skipped)):
            encoded = tokenizer(
                [text for _, text in batch], add_special_tokens=False, verbose=False,
                return_attention_mask=False, return_token_type_ids=False,
            )["input_ids"]  # fmt: skip
            for (path, _), ids in zip(batch, encoded, strict=True):
                np.asarray([*ids, tokenizer.eos_token_id], dtype=token_type).tofile(out)
                files.append((path, len(ids) + 1))
    if not files:
        raise EngineError(BAD_DATA, f"{corpus.root} holds no UTF-8 text", "give source files")
    index = {"dtype": np.dtype(token_type).name, "files": files, "skipped": skipped}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def _texts(
    files: Sequence[SourceFile], skipped: list[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    """Path and text of each file; what the walk's first look could not see is skipped here."""
    for file in files:
        try:
            content = file.path.read_bytes()
        except OSError as error:
            skipped.append((file.relative_path, f"unreadable ({error.strerror})"))
            continue
        reason = why_not_text(content, is_whole=True)
        if reason:
            skipped.append((file.relative_path, reason))
        else:
            yield file.relative_path, content.decode("utf-8")


def _batches(texts: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    size = 0
    for path, text in texts:
        batch.append((path, text))
        size += len(text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read_cache(folder: Path, corpus: Corpus) -> TokenCache:
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    tokens = np.memmap(folder / "tokens.bin", dtype=index["dtype"], mode="r")
    late = tuple(SkippedFile(path, reason) for path, reason in index["skipped"])
    return TokenCache(
        tokens=tokens,
        paths=tuple(path for path, _ in index["files"]),
        token_counts=np.asarray([count for _, count in index["files"]], dtype=np.int64),
        skipped=corpus.skipped + late,
        # Of what was read, whatever became of the files' times since.
        fingerprint=hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(),
    )


def split_by_file(
    cache: TokenCache, *, fraction: float, window_tokens: int, seed: int
) -> tuple[list[int], list[int]]:
    """Indices of the training files and of the held-out files.

    Files are held out in the order of a seeded hash of their paths until they are `fraction` of all
    files and hold one window. A file that would leave less than one window to train on stays in
    training.
    """
    count = len(cache.paths)
    order = sorted(
        range(count), key=lambda i: hashlib.sha256(f"{seed}:{cache.paths[i]}".encode()).digest()
    )
    held_out: set[int] = set()
    held_out_tokens, training_tokens = 0, int(cache.token_counts.sum())
    for index in order if fraction > 0 else ():
        if len(held_out) >= fraction * count and held_out_tokens >= window_tokens:
            break
        tokens = int(cache.token_counts[index])
        if training_tokens - tokens >= window_tokens:
            held_out.add(index)
            held_out_tokens += tokens
            training_tokens -= tokens
    return [i for i in range(count) if i not in held_out], sorted(held_out)


def make_dataset(
    cache: TokenCache,
    *,
    context_tokens: int,
    target_tokens: int,
    held_out_fraction: float,
    seed: int,
) -> Dataset:
    """Cuts a tokenised corpus into training and held-out windows.

    `held_out_fraction` 0 holds nothing out. Raises `EngineError` (BAD_DATA) when either part is
    shorter than one window.
    """
    window_tokens = context_tokens + target_tokens
    training, held_out = split_by_file(
        cache, fraction=held_out_fraction, window_tokens=window_tokens, seed=seed
    )
    parts = [
        Windows(cache.split(part), context_tokens, target_tokens) for part in (training, held_out)
    ]
    _require_windows(parts, cache, window_tokens, held_out_fraction)
    decided_by = [cache.fingerprint, context_tokens, target_tokens, held_out_fraction, seed]
    return Dataset(
        training=parts[0],
        held_out=parts[1],
        file_count=len(cache.paths),
        token_count=len(cache.tokens),
        skipped=cache.skipped,
        fingerprint=hashlib.sha256(json.dumps(decided_by).encode()).hexdigest(),
    )


def _require_windows(
    parts: Sequence[Windows], cache: TokenCache, window_tokens: int, held_out_fraction: float
) -> None:
    training, held_out = parts
    token_count, file_count = len(cache.tokens), len(cache.paths)
    if not len(training):
        problem = (
            f"the corpus has {token_count:,} tokens; "
            f"one window of this tier needs {window_tokens:,}"
        )
        raise EngineError(BAD_DATA, problem, "give more files or choose a lower tier")
    if held_out_fraction > 0 and not len(held_out):
        problem = (
            f"the corpus has {token_count:,} tokens in {file_count} files, which cannot be divided "
            f"into one window to train on and one to hold out, of {window_tokens:,} tokens each"
        )
        fix = "give more files, choose a lower tier, or set data.held_out_fraction to 0"
        raise EngineError(BAD_DATA, problem, fix)
