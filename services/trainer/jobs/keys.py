"""Names of everything the trainer keeps in Redis.

| key                      | type   | holds                                                       |
|--------------------------|--------|-------------------------------------------------------------|
| elite:run:ID             | hash   | the run's record (records.py)                               |
| elite:run:ID:events      | stream | its events, one serialized RunEvent each                    |
| elite:run:ID:lease       | string | the owner that runs it now; expires                         |
| elite:runs               | zset   | all run ids; score 0, so they sort by id: by creation       |
| elite:runs:state:STATE   | zset   | the ids in one state, likewise                              |
| elite:runs:waiting       | zset   | ids waiting for a worker, by milliseconds since when        |
| elite:runs:unsent        | zset   | ids whose queue message is not known to be sent, likewise   |
| elite:request:REQUEST_ID | string | the run a request_id has made                               |
| elite:workers            | zset   | worker names by milliseconds of their last heartbeat        |
| elite.trainer.runs       | list   | Celery's queue                                              |
"""

from __future__ import annotations

from services.trainer.jobs.states import State, state_name

QUEUE_NAME = "elite.trainer.runs"
ALL_RUNS = "elite:runs"
WAITING = "elite:runs:waiting"
UNSENT = "elite:runs:unsent"
WORKERS = "elite:workers"


def run_key(run_id: str) -> str:
    """Key of the run's record."""
    return f"elite:run:{run_id}"


def events_key(run_id: str) -> str:
    """Key of the run's event stream."""
    return f"elite:run:{run_id}:events"


def lease_key(run_id: str) -> str:
    """Key of the run's lease."""
    return f"elite:run:{run_id}:lease"


def state_key(state: State) -> str:
    """Key of the index of one state."""
    return f"elite:runs:state:{state_name(state)}"


def request_key(request_id: str) -> str:
    """Key that remembers which run a request_id has made."""
    return f"elite:request:{request_id}"
