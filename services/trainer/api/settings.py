"""Settings of the trainer's API, read from `ELITE_TRAINER_API_*`; see also `TrainerSettings`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import ServerSettings
from services.trainer.settings import TrainerSettings


class TrainerApiSettings(ServerSettings):
    """Where the API listens and how patient it is."""

    model_config = SettingsConfigDict(env_prefix="ELITE_TRAINER_API_")

    address: str = Field(
        default="127.0.0.1:50053", description="host:port or unix:/path the server listens on"
    )
    trainer: TrainerSettings = Field(
        default_factory=TrainerSettings, description="shared with the workers: ELITE_TRAINER_*"
    )
    watch_outage_seconds: float = Field(
        default=30.0, ge=0, description="how long WatchRun bears Redis being away"
    )
    sweep_interval_seconds: float = Field(
        default=5.0, gt=0, description="pause between looks for runs that lost message or worker"
    )
    requeue_after_seconds: float = Field(
        default=30.0, gt=0, description="a run not known to be queued for so long is queued again"
    )
