"""`python -m services.planner`: the planner as a process of its own."""

from __future__ import annotations

import asyncio
import sys

from services.common.logging import configure_logging
from services.common.server import serve
from services.planner.ladder import LadderFileError
from services.planner.servicer import planner_service
from services.planner.settings import PlannerSettings


def main() -> int:
    """Serves until SIGTERM or SIGINT; 2 when the ladder file is wrong."""
    settings = PlannerSettings()
    configure_logging("planner", settings.log_level, settings.log_format)
    try:
        service = planner_service(settings)
    except LadderFileError as error:
        print(f"elite planner: {error}", file=sys.stderr)
        return 2
    asyncio.run(serve(service, settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
