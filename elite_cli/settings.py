"""What the command line knows before it does anything: addresses and the state directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROFILER = "profiler"
PLANNER = "planner"
TRAINER = "trainer"


@dataclass(frozen=True)
class CliSettings:
    """Global options of one invocation. An empty address: not given."""

    profiler_address: str = ""
    planner_address: str = ""
    trainer_address: str = ""
    state_directory_option: Path | None = None
    verbose: bool = False

    @property
    def state_directory(self) -> Path:
        """Where `elite up` keeps its state, absolute."""
        from services.common.settings import default_state_directory  # 0.2 s to import

        return (self.state_directory_option or default_state_directory()).expanduser().absolute()

    def address(self, service: str) -> str:
        """The address given for a service, or an empty string."""
        addresses = {
            PROFILER: self.profiler_address,
            PLANNER: self.planner_address,
            TRAINER: self.trainer_address,
        }
        return addresses[service]
