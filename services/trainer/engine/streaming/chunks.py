"""The window cut into chunks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [begin, end) of the window."""

    index: int
    begin: int
    end: int

    @property
    def length(self) -> int:
        """Its tokens."""
        return self.end - self.begin


def chunks_of(tokens: int, chunk_tokens: int) -> list[Chunk]:
    """Chunks in order; the last one may be shorter."""
    begins = range(0, tokens, chunk_tokens)
    return [Chunk(i, begin, min(begin + chunk_tokens, tokens)) for i, begin in enumerate(begins)]
