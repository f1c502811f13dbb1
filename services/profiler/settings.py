"""Settings of the profiler, read from `ELITE_PROFILER_*`."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.errors import ErrorReason, ServiceError
from services.common.settings import ServerSettings, default_state_directory

SCRATCH_VARIABLE = "ELITE_PROFILER_SCRATCH_DIRECTORY"


class ProfilerSettings(ServerSettings):
    """Where the profiler listens, keeps its measurements and measures the disk."""

    model_config = SettingsConfigDict(env_prefix="ELITE_PROFILER_")

    address: str = Field(
        default="127.0.0.1:50051", description="host:port or unix:/path the server listens on"
    )
    state_directory: Path = Field(
        default_factory=lambda: default_state_directory() / "profiler",
        description="where measurements are kept between starts",
    )
    scratch_directory: Path | None = Field(
        default=None,
        description="the disk runs will offload to; by default a folder in the state directory",
    )
    node_name: str = Field(
        default="", max_length=253, description="name in profiles; the host name when empty"
    )
    kernel_probe_delay_seconds: float = Field(
        default=2.0,
        ge=0,
        description="pause before attention kernels are probed in the background, so that a "
        "command that uses this service in its own process for a moment never pays for it",
    )

    def usable_scratch_directory(self) -> Path:
        """The scratch directory, checked now.

        Raises `ServiceError` (PRECONDITION_FAILED) naming the variable when it does not exist, is
        no directory or cannot be written. Only the default one is created.
        """
        scratch = self.scratch_directory or self._made_default_scratch()
        if not scratch.is_dir():
            raise _unusable(scratch, "is not an existing directory")
        if not os.access(scratch, os.W_OK | os.X_OK):
            raise _unusable(scratch, "cannot be written by this user")
        return scratch

    def _made_default_scratch(self) -> Path:
        scratch = self.state_directory / "scratch"
        try:
            scratch.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(scratch, f"cannot be created ({error.strerror})") from error
        return scratch


def _unusable(scratch: Path, problem: str) -> ServiceError:
    fix = f"set {SCRATCH_VARIABLE} to a writable directory on the disk that runs will use"
    return ServiceError(
        ErrorReason.PRECONDITION_FAILED, f"scratch directory {scratch} {problem}: {fix}"
    )
