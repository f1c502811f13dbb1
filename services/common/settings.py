"""Settings every gRPC server shares. Each service subclasses this with its own prefix."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings

_Settings = TypeVar("_Settings", bound=BaseSettings)


class ServerSettings(BaseSettings):
    """Read from environment variables with the subclass's prefix, e.g. `ELITE_PLANNER_ADDRESS`."""

    address: str = Field(description="host:port or unix:/path the gRPC server listens on")
    metrics_address: str = Field(
        default="", description="host:port of the Prometheus endpoint; empty switches it off"
    )
    max_message_bytes: int = Field(default=4 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    max_concurrent_requests: int = Field(
        default=256,
        ge=1,
        description="calls open at once in each process, probes not counted; a quarter as many "
        "watches of health and streams of reflection beside them",
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


def read_settings(kind: type[_Settings], program: str) -> _Settings:
    """A program's settings, from its environment.

    Ends the program with status 2, and a line on stderr for each variable that is wrong. Values are
    not shown: some are secret.
    """
    try:
        return kind()
    except ValidationError as error:
        prefix = _prefix(kind, error.title)
        for problem in error.errors(include_url=False, include_context=False, include_input=False):
            # A rule about several settings names them itself.
            variable = prefix + ("_".join(map(str, problem["loc"])).upper() or "*")
            said = problem["msg"].removeprefix("Value error, ")
            print(f"elite {program}: {variable}: {said[:1].lower()}{said[1:]}", file=sys.stderr)
        raise SystemExit(2) from error


def _prefix(kind: type[BaseSettings], title: str) -> str:
    """Of the settings with this title: the program's own, or those it shares with others."""
    annotations: list[Any] = [field.annotation for field in kind.model_fields.values()]
    found = next(one for one in (kind, *annotations) if getattr(one, "__name__", "") == title)
    return str(found.model_config["env_prefix"])
