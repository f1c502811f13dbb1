"""`python -m services.planner`: the planner as a process of its own, or as several."""

from __future__ import annotations

import sys

from services.common.addresses import AddressError
from services.common.logging import configure_logging
from services.common.processes import process_count, serve_processes
from services.common.settings import read_settings
from services.planner.settings import PlannerSettings


def main() -> int:
    """Serves until SIGTERM or SIGINT; 2 when a setting or the ladder file is wrong."""
    settings = read_settings(PlannerSettings, "planner")
    configure_logging("planner", settings.log_level, settings.log_format)
    count = process_count(settings.worker_processes)
    try:
        if count > 1:
            return serve_processes("services.planner", "planner", count, settings)
        return _serve(settings)
    except AddressError as error:
        return _refuse(error)


def _serve(settings: PlannerSettings) -> int:
    # Here, so that the parent of several processes stays small.
    from services.common.server import run_service
    from services.planner.ladder import LadderFileError
    from services.planner.servicer import planner_service

    try:
        service = planner_service(settings)
    except LadderFileError as error:
        return _refuse(error)
    return run_service("planner", lambda: service, settings)


def _refuse(error: Exception) -> int:
    print(f"elite planner: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
