"""Runs the trainer's API: `python -m services.trainer.api`."""

from __future__ import annotations

import sys

from prometheus_client import REGISTRY

from services.common.logging import configure_logging
from services.common.server import run_service
from services.common.settings import read_settings
from services.trainer.api.collector import FleetCollector
from services.trainer.api.servicer import trainer_service
from services.trainer.api.settings import TrainerApiSettings


def main() -> int:
    """Serves until SIGTERM or SIGINT."""
    settings = read_settings(TrainerApiSettings, "trainer")
    configure_logging("trainer-api", settings.log_level, settings.log_format)
    REGISTRY.register(FleetCollector(settings.trainer))
    return run_service("trainer", lambda: trainer_service(settings), settings)


if __name__ == "__main__":
    sys.exit(main())
