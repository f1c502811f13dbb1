"""What a caller limits, and what that leaves of a machine."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.planner.grids import OPT_IN
from services.planner.ladder import Tier
from services.planner.machine import Machine
from services.planner.schedule import Schedule

DEFAULT_HEADROOM = 0.12


@dataclass(frozen=True, slots=True)
class Constraints:
    """What the caller limits. 0 stands for no limit, tier 0 for the planner's choice."""

    gpu_memory_bytes: int = 0
    host_memory_bytes: int = 0
    disk_bytes: int = 0
    max_step_seconds: float = 0.0
    exact_only: bool = False
    tier: int = 0
    headroom_fraction: float = DEFAULT_HEADROOM
    max_run_seconds: float = 0.0
    schedule: Schedule | None = None
    allowed: frozenset[str] = field(default_factory=frozenset)
    forbidden: frozenset[str] = field(default_factory=frozenset)

    def forbids(self, lossy_id: str) -> bool:
        """Whether a plan must do without this lossy optimisation."""
        unasked = lossy_id in OPT_IN and lossy_id not in self.allowed
        return self.exact_only or unasked or lossy_id in self.forbidden

    def longest_step_seconds(self, tier: Tier) -> float:
        """The tighter of the two limits on time, for one step over one window; 0 for none."""
        limits = [self.max_step_seconds] if self.max_step_seconds else []
        if self.max_run_seconds and self.schedule:
            limits.append(self.max_run_seconds / self.schedule.windows_at(tier))
        return min(limits, default=0.0)


@dataclass(frozen=True, slots=True)
class Budget:
    """Safe memory, and what is left of it after the headroom.

    one_pool: device and host figures describe the same memory.
    """

    gpu_bytes: int
    host_bytes: int
    disk_bytes: int
    headroom_fraction: float
    gpu_safe_bytes: int
    host_safe_bytes: int
    one_pool: bool


def budget_for(machine: Machine, constraints: Constraints) -> Budget:
    """Safe figures under the constraints, less the headroom."""
    host_safe = _smaller(machine.host_safe_bytes, constraints.host_memory_bytes)
    shared = host_safe if machine.shared_memory else 2**63
    gpu_safe = min(machine.gpu_safe_bytes, constraints.gpu_memory_bytes or 2**63, shared)
    usable = 1.0 - constraints.headroom_fraction
    return Budget(
        gpu_bytes=int(gpu_safe * usable),
        host_bytes=int(host_safe * usable),
        disk_bytes=_smaller(machine.disk_free_bytes, constraints.disk_bytes),
        headroom_fraction=constraints.headroom_fraction,
        gpu_safe_bytes=gpu_safe,
        host_safe_bytes=host_safe,
        one_pool=machine.shared_memory,
    )


def _smaller(available: int, limit: int) -> int:
    """The smaller of two figures of which 0 means unknown or unlimited."""
    return min(available, limit) if available and limit else available or limit
