"""Names of everything the trainer keeps in Redis.

| key                      | type   | holds                                                       |
|--------------------------|--------|-------------------------------------------------------------|
| elite:run:ID             | hash   | the run's record (records.py)                               |
| elite:run:ID:events      | stream | its events, one serialized RunEvent each                    |
| elite:run:ID:lease       | string | the owner that runs it now; expires                         |
| elite:runs               | zset   | all run ids; score 0, so they sort by id: by creation       |
| elite:runs:state:STATE   | zset   | the ids in one state, likewise                              |
| elite:runs:waiting       | zset   | ids waiting for a worker, by milliseconds since when        |
| elite:runs:ready:CLASS   | zset   | those that workers of a device class can run, next first    |
| elite:runs:unsent        | zset   | ids whose queue message is not known to be sent, likewise   |
| elite:request:REQUEST_ID | string | the run a request_id has made                               |
| elite:workers            | zset   | worker names by milliseconds of their last heartbeat        |
| elite:workers:CLASS      | zset   | those of a device class, likewise                           |
| elite:swept              | string | when an API last looked for runs nobody has, milliseconds   |
| elite:classes            | set    | device classes that runs or workers have named              |
| elite.trainer.runs.CLASS | list   | Celery's queue of a device class                            |
"""

from __future__ import annotations

from services.trainer.jobs.states import State, state_name

ALL_RUNS = "elite:runs"
WAITING = "elite:runs:waiting"
UNSENT = "elite:runs:unsent"
WORKERS = "elite:workers"
DEVICE_CLASSES = "elite:classes"
SWEPT = "elite:swept"


def run_key(run_id: str) -> str:
    """Key of the run's record."""
    return f"elite:run:{run_id}"


def events_key(run_id: str) -> str:
    """Key of the run's event stream."""
    return f"elite:run:{run_id}:events"


def lease_key(run_id: str) -> str:
    """Key of the run's lease."""
    return f"elite:run:{run_id}:lease"


def ready_key(device_class: str) -> str:
    """Key of the runs that workers of a device class can run, in the order they should."""
    return f"elite:runs:ready:{device_class}"


def workers_key(device_class: str) -> str:
    """Key of the workers of a device class."""
    return f"elite:workers:{device_class}"


def queue_name(device_class: str) -> str:
    """Celery's queue of a device class."""
    return f"elite.trainer.runs.{device_class}"


def state_key(state: State) -> str:
    """Key of the index of one state."""
    return f"elite:runs:state:{state_name(state)}"


def request_key(request_id: str) -> str:
    """Key that remembers which run a request_id has made."""
    return f"elite:request:{request_id}"
