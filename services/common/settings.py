"""Settings every gRPC server shares. Each service subclasses this with its own prefix."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings


class ServerSettings(BaseSettings):
    """Read from environment variables with the subclass's prefix, e.g. `ELITE_PLANNER_ADDRESS`."""

    address: str = Field(description="host:port or unix:/path the gRPC server listens on")
    metrics_address: str = Field(
        default="", description="host:port of the Prometheus endpoint; empty switches it off"
    )
    max_message_bytes: int = Field(default=4 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    max_concurrent_requests: int = Field(
        default=256, ge=1, description="calls open at once in each process, probes not counted"
    )
    max_client_requests_per_second: float = Field(
        default=0.0, ge=0, description="calls one client may make, in each process; 0: any number"
    )
    max_client_concurrent_requests: int = Field(
        default=0, ge=0, description="calls one client may have open, watches too; 0: any number"
    )
    tls_certificate: Path | None = Field(
        default=None, description="PEM file; with tls_key connections are encrypted"
    )
    tls_key: Path | None = Field(default=None, description="PEM file of the certificate's key")
    tls_client_ca: Path | None = Field(
        default=None, description="PEM file; clients must show a certificate that it signed"
    )
    tokens_file: Path | None = Field(
        default=None,
        description="YAML file of those who may call, see `elite tokens new`; none: anybody may",
    )
    reflection: bool = Field(default=True, description="tell clients the protos")
    shutdown_grace_seconds: float = Field(default=10.0, ge=0)
    log_format: Literal["json", "text"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


def default_state_directory() -> Path:
    """Where a single-machine installation keeps its state (XDG base directory rules)."""
    import os

    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "elite"
