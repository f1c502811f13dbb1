"""What the owner of a running run may do: keep its lease and add events."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from services.trainer.jobs import keys, scripts
from services.trainer.jobs.errors import LeaseLostError, RunNotFoundError


class LeaseStatus(StrEnum):
    """Answer to a renewal."""

    HELD = "held"
    # Held, and somebody asked to cancel the run.
    CANCEL_REQUESTED = "cancel"
    # Held, and somebody asked to pause it.
    PAUSE_REQUESTED = "pause"
    LOST = "lost"
    # Redis has no such run: it has lost what it had.
    GONE = "gone"


class RunLease:
    """One owner's hold on one run. A second owner makes every method say that it is lost."""

    def __init__(
        self, client: Any, run_id: str, owner: str, seconds: float, event_stream_length: int
    ) -> None:
        self._run_id = run_id
        self._keys = [keys.run_key(run_id), keys.lease_key(run_id)]
        self._stream_keys = [keys.run_key(run_id), keys.events_key(run_id)]
        self._milliseconds = int(seconds * 1000)
        self._stream_length = event_stream_length
        self._renew = client.register_script(scripts.RENEW)
        self._append = client.register_script(scripts.APPEND)
        self.owner = owner

    async def renew(self) -> LeaseStatus:
        """Extends the lease by its full length from now."""
        answer = await self._renew(keys=self._keys, args=[self.owner, self._milliseconds])
        return LeaseStatus(answer.decode())

    async def append(
        self,
        first_number: int,
        events: Sequence[bytes],
        progress: bytes,
        *,
        saved: str = "",
    ) -> None:
        """Adds events, numbered from `first_number` within this attempt, and stores the progress.

        saved: where the next attempt would go on, in words that sort by how far that is; beyond
        all before, deliveries count anew.
        Sending the same numbers again adds nothing. Raises `LeaseLostError`, and
        `RunNotFoundError` when Redis has lost the run.
        """
        shared = [self.owner, self._stream_length, progress, saved, first_number]
        arguments = [*shared, *events]
        answer = await self._append(keys=self._stream_keys, args=arguments)
        if answer == b"gone":
            raise RunNotFoundError(self._run_id)
        if answer == b"lost":
            raise LeaseLostError
