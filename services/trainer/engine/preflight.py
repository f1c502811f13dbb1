"""What has to be there before anything is loaded: host memory for the plan."""

from __future__ import annotations

import resource

from elite.planner.v1 import planner_pb2
from services.common.host_memory import read_memory
from services.trainer.engine.failures import HOST_OUT_OF_MEMORY, EngineError

_PAGE_BYTES = resource.getpagesize()


def check_host_memory(plan: planner_pb2.Plan) -> None:
    """Raises `EngineError` (HOST_OUT_OF_MEMORY) when less is free than the plan needs.

    Linux hands out memory that is not there, and kills the process that touches it hours later.
    """
    needed = plan.host_memory.total_bytes
    # The plan counts this process too.
    here = read_memory().available_bytes + _resident_bytes()
    if here < needed:
        problem = f"the plan needs {needed:,} bytes of host memory, and {here:,} are free"
        raise EngineError(HOST_OUT_OF_MEMORY, problem, "free some, or plan again with --host-ram")


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES
