"""The profiler as a process: `python -m services.profiler`."""

from __future__ import annotations

import sys

from prometheus_client import REGISTRY

from services.common.logging import configure_logging
from services.common.server import run_service
from services.common.settings import read_settings
from services.profiler.metrics import ProfileCollector
from services.profiler.profiler import Profiler
from services.profiler.servicer import profiler_service
from services.profiler.settings import ProfilerSettings


def main() -> int:
    """Serves until SIGTERM or SIGINT."""
    settings = read_settings(ProfilerSettings, "profiler")
    configure_logging("profiler", settings.log_level, settings.log_format)
    REGISTRY.register(ProfileCollector(Profiler(settings).snapshot))
    return run_service("profiler", lambda: profiler_service(settings), settings)


if __name__ == "__main__":
    sys.exit(main())
