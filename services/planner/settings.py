"""Settings of the planner, from `ELITE_PLANNER_*` environment variables."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import ServerSettings, default_state_directory


class PlannerSettings(ServerSettings):
    """Where the planner listens, which tiers it adds, where it keeps reported outcomes."""

    model_config = SettingsConfigDict(env_prefix="ELITE_PLANNER_")

    address: str = "127.0.0.1:50052"
    worker_processes: int = Field(
        default=1, ge=0, le=256, description="processes that share the port; 0: one per core"
    )
    ladder_file: Path | None = Field(
        default=None, description="YAML file with tiers to add to the ladder"
    )
    state_directory: Path = Field(
        default_factory=lambda: default_state_directory() / "planner",
        description="folder of the outcome store; made when the first outcome is reported",
    )
