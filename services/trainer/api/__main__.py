"""Runs the trainer's API: `python -m services.trainer.api`."""

from __future__ import annotations

import asyncio

from prometheus_client import REGISTRY

from services.common.logging import configure_logging
from services.common.server import serve
from services.trainer.api.collector import FleetCollector
from services.trainer.api.servicer import trainer_service
from services.trainer.api.settings import TrainerApiSettings


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    settings = TrainerApiSettings()
    configure_logging("trainer-api", settings.log_level, settings.log_format)
    REGISTRY.register(FleetCollector(settings.trainer))

    async def run() -> None:
        await serve(trainer_service(settings), settings)

    asyncio.run(run())


if __name__ == "__main__":
    main()
