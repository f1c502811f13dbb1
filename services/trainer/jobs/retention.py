"""Records of runs that ended long ago are removed, with their events.

Their folders are the workers' to remove: worker/tidying.py.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from services.trainer.jobs import keys, scripts
from services.trainer.jobs.identifiers import first_run_id
from services.trainer.jobs.states import TERMINAL_STATES, state_name
from services.trainer.settings import TrainerSettings

_AT_ONCE = 200


class Retention:
    """Removes what is older than the settings keep."""

    def __init__(self, client: Any, settings: TrainerSettings) -> None:
        self._client = client
        self._days = settings.run_retention_days
        self._prune = client.register_script(scripts.PRUNE)

    async def prune(self, now: datetime | None = None) -> int:
        """Removes the oldest runs that ended so many days ago; returns how many. Days 0: none."""
        if not self._days:
            return 0
        cutoff = (now or datetime.now(UTC)) - timedelta(days=self._days)
        removed = 0
        for state in TERMINAL_STATES:
            # Ids sort by creation; a run that is younger than the cutoff cannot have ended before.
            below, index = f"({first_run_id(cutoff)}", keys.state_key(state)
            ids = await self._client.zrange(index, "-", below, bylex=True, offset=0, num=_AT_ONCE)
            for run_id in ids:
                removed += await self._prune_one(run_id.decode(), index, state_name(state), cutoff)
        return removed

    async def _prune_one(self, run_id: str, index: str, state: str, cutoff: datetime) -> int:
        request_id = await self._client.hget(keys.run_key(run_id), "request_id") or b""
        places = [
            keys.run_key(run_id), keys.events_key(run_id), keys.request_key(request_id.decode()),
            index, keys.ALL_RUNS,
        ]  # fmt: skip
        cutoff_milliseconds = int(cutoff.timestamp() * 1000)
        arguments = [run_id, state, cutoff_milliseconds]
        return int(await self._prune(keys=places, args=arguments))
