"""Reads a run's event stream: what is kept after a cursor, then what comes."""

from __future__ import annotations

import math
from typing import Any

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs import keys

BEGINNING = "0-0"
_BATCH = 256
# The highest number Redis takes for either part of a stream id.
_HIGHEST_PART = 2**64 - 1


class EventStream:
    """The events of one run. A cursor is the stream id of an event."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self._key = keys.events_key(run_id)

    async def usable_cursor(self, cursor: str) -> str:
        """The cursor itself, or the beginning if no event of this stream can have had it.

        A cursor older than what is kept is usable: reading goes on with the oldest event kept.
        """
        newest = await self._client.xrevrange(self._key, count=1)
        if not cursor or not newest:
            return BEGINNING
        position = _position(cursor)
        if max(position) > _HIGHEST_PART or position > _position(newest[0][0].decode()):
            return BEGINNING
        return cursor

    async def read(self, cursor: str, wait_seconds: float) -> list[trainer_pb2.RunEvent]:
        """Events after the cursor, oldest first; waits for the first one at most so long.

        `wait_seconds` must be shorter than the connection's timeout; 0 does not wait.
        """
        block = math.ceil(wait_seconds * 1000) or None
        answer = await self._client.xread({self._key: cursor}, count=_BATCH, block=block)
        return [_decode(*entry) for _, entries in answer or () for entry in entries]


def _decode(entry_id: bytes, fields: dict[bytes, bytes]) -> trainer_pb2.RunEvent:
    event = trainer_pb2.RunEvent.FromString(fields[b"event"])
    event.cursor = entry_id.decode()
    return event


def _position(cursor: str) -> tuple[int, int]:
    milliseconds, _, sequence = cursor.partition("-")
    return int(milliseconds), int(sequence)
