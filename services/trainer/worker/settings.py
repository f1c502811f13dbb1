"""Settings of a worker, read from `ELITE_TRAINER_WORKER_*`; see also `TrainerSettings`."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from services.trainer.jobs.device_classes import class_of_name, device_classes_here
from services.trainer.settings import TrainerSettings


class TrainerWorkerSettings(BaseSettings):
    """How a worker runs engines and how patient it is with them."""

    model_config = SettingsConfigDict(env_prefix="ELITE_TRAINER_WORKER_")

    trainer: TrainerSettings = Field(
        default_factory=TrainerSettings, description="shared with the API: ELITE_TRAINER_*"
    )
    metrics_address: str = Field(
        default="", description="host:port of the Prometheus endpoint; empty switches it off"
    )
    planner_address: str = Field(
        default="", description="planner to report measured outcomes to; empty: none"
    )
    engine_command: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(sys.executable, "-m", "services.trainer.engine"),
        description="the engine, as a shell would split it; lets operators wrap it, as in "
        "'numactl -N 0 python -m services.trainer.engine'",
    )
    device_classes: Annotated[tuple[str, ...], NoDecode] = Field(
        default_factory=device_classes_here,
        description="kinds of device this worker runs plans for, separated by ','; by default "
        "'cpu' and the GPUs that the driver names, as in 'nvidia-h200'",
    )
    profiler_address: str = Field(
        default="", description="profiler of this machine, to compare plans with; empty: none"
    )
    maximum_replans: int = Field(
        default=3, ge=0, description="how often a run's plan is replaced by a more frugal one"
    )
    maximum_deliveries: int = Field(
        default=3,
        ge=1,
        description="a run whose worker or engine vanishes so often without having saved "
        "anything has failed",
    )
    heartbeat_seconds: float = Field(default=5.0, gt=0, description="pause between heartbeats")
    poll_seconds: float = Field(
        default=1.0,
        gt=0,
        description="pause between looks at the cancel flag and lease renewals; at most a third of "
        "ELITE_TRAINER_LEASE_SECONDS",
    )
    cancel_grace_seconds: float = Field(
        default=60.0, ge=0, description="from SIGTERM to SIGKILL for an engine that is cancelled"
    )
    drain_grace_seconds: float = Field(
        default=300.0,
        ge=0,
        description="from SIGTERM to SIGKILL for an engine whose worker shuts down",
    )
    stall_seconds: float = Field(
        default=1800.0,
        gt=0,
        description="an engine that says nothing for so long, and three times what the plan says "
        "its steps take at most, hangs",
    )
    store_outage_seconds: float = Field(
        default=3600.0, ge=0, description="how long a run's end is kept while Redis is away"
    )
    buffered_events: int = Field(
        default=10_000, ge=100, description="events kept while Redis is away; then the oldest go"
    )
    log_format: Literal["json", "text"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="after")
    def _renews_in_time(self) -> Self:
        """A lease outlives two renewals that fail at once."""
        lease_seconds = self.trainer.lease_seconds
        if 3 * self.poll_seconds > lease_seconds:
            raise ValueError(
                f"poll_seconds: {self.poll_seconds:g} is more than a third of "
                f"ELITE_TRAINER_LEASE_SECONDS ({lease_seconds:g}), and the lease is renewed so "
                "often: the run would be taken for lost"
            )
        return self

    @field_validator("device_classes", mode="before")
    @classmethod
    def _split_classes(cls, value: object) -> object:
        return tuple(value.replace(" ", "").split(",")) if isinstance(value, str) else value

    @field_validator("device_classes")
    @classmethod
    def _named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [name for name in value if class_of_name(name) != name or not name]
        if wrong or not value:
            raise ValueError(f"name device classes like 'cpu' or 'nvidia-h200', not {wrong}")
        return value

    @field_validator("engine_command", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(shlex.split(value)) if isinstance(value, str) else value

    @field_validator("engine_command")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("names no program")
        return value
