"""Settings that the trainer's API and its workers share, read from `ELITE_TRAINER_*`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import quote, urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from services.common.settings import default_state_directory

REDIS_SCHEMES = ("redis", "rediss", "unix")


class TrainerSettings(BaseSettings):
    """Where runs are recorded, where they keep their files, and what they may read."""

    model_config = SettingsConfigDict(env_prefix="ELITE_TRAINER_", hide_input_in_errors=True)

    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        description="redis://host:port/db, rediss://... or unix:///path; records and queue",
    )
    redis_username: str = Field(default="", description="ACL user; empty: that of the URL")
    redis_password_file: Path | None = Field(
        default=None, description="file with the user's password, instead of one in the URL"
    )
    runs_directory: Path = Field(
        default_factory=lambda: default_state_directory() / "runs",
        description="one folder per run: plan, log, checkpoints, adapter",
    )
    data_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="folders runs may read data from, separated by ':'; none: no run is accepted",
    )
    model_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="folders spec.model_path may lie in, separated by ':'; none: no model_path",
    )
    lease_seconds: float = Field(
        default=60.0, gt=0, description="after so long without a sign of its worker a run is free"
    )
    worker_presence_seconds: float = Field(
        default=15.0, gt=0, description="after so long without a heartbeat a worker is gone"
    )
    event_stream_length: int = Field(
        default=10_000, ge=100, description="events kept per run, the newest (about)"
    )
    run_retention_days: float = Field(
        default=90.0,
        ge=0,
        description="so long after a run has ended its record, events and folder are removed, the "
        "adapter too; 0: never",
    )
    checkpoint_retention_days: float = Field(
        default=7.0,
        ge=0,
        description="so long after a run has ended its checkpoints are removed but for the newest "
        "good one; 0: never",
    )
    redis_connect_timeout_seconds: float = Field(default=1.0, gt=0)
    redis_timeout_seconds: float = Field(
        default=2.0, gt=0, description="longest wait for an answer of Redis"
    )

    @field_validator("data_roots", "model_roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part for part in value.split(os.pathsep) if part)
        return value

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        if urlsplit(value).scheme not in REDIS_SCHEMES:
            raise ValueError(f"must start with one of {', '.join(REDIS_SCHEMES)}")
        return value

    @model_validator(mode="after")
    def _put_in_credentials(self) -> Self:
        """Both clients, redis-py and Celery, take them from the URL only."""
        if self.redis_password_file is None:
            return self
        parts = urlsplit(self.redis_url)
        if parts.scheme == "unix":
            raise ValueError("redis_password_file: needs a redis_url of redis:// or rediss://")
        try:
            password = self.redis_password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"redis_password_file: {self.redis_password_file}: {error}") from error
        user = quote(self.redis_username or parts.username or "", safe="")
        host = parts.netloc.rpartition("@")[2]
        place = f"{user}:{quote(password, safe='')}@{host}"
        self.redis_url = parts._replace(netloc=place).geturl()
        return self

    @property
    def redis_place(self) -> str:
        """The Redis address without user name and password, for messages."""
        parts = urlsplit(self.redis_url)
        if parts.scheme == "unix":
            return parts.path
        return f"{parts.hostname}:{parts.port or 6379}"
