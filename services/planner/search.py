"""The search: every tier from the top, every legal set, the cheapest in time that fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from services.planner.cost import StepCost, matmul_rate, step_cost
from services.planner.ladder import Tier
from services.planner.machine import Machine
from services.planner.memory import RunMemory, run_memory
from services.planner.models import ModelShape
from services.planner.options import OptimizationSet, legal_sets
from services.planner.remedies import (
    ALLOW_LOSSY,
    remedy_for_bytes,
    remedy_for_gpu,
    remedy_for_kernel,
    remedy_for_time,
    remedy_for_window,
)

DEFAULT_HEADROOM = 0.12


class Resource(Enum):
    """What can keep a tier from fitting."""

    GPU_MEMORY = "GPU memory"
    HOST_MEMORY = "host memory"
    DISK = "disk"
    TIME = "time"
    SOFTWARE = "software"


@dataclass(frozen=True, slots=True)
class Constraints:
    """What the caller limits. 0 stands for no limit, tier 0 for the planner's choice."""

    host_memory_bytes: int = 0
    disk_bytes: int = 0
    max_step_seconds: float = 0.0
    exact_only: bool = False
    tier: int = 0
    headroom_fraction: float = DEFAULT_HEADROOM


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


@dataclass(frozen=True, slots=True)
class Candidate:
    """One tier under one set, with what it takes."""

    tier: Tier
    chosen: OptimizationSet
    memory: RunMemory
    cost: StepCost


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a tier fits, with the best candidate; None when the machine has no legal set."""

    tier: Tier
    candidate: Candidate | None
    binding: Resource | None
    shortfall_bytes: int
    shortfall_seconds: float
    remedy: str

    @property
    def fits(self) -> bool:
        """True when nothing binds."""
        return self.binding is None


@dataclass(frozen=True, slots=True)
class Result:
    """The chosen candidate, if any, and a verdict on every tier."""

    chosen: Candidate | None
    verdicts: tuple[Verdict, ...]
    budget: Budget


def budget_for(machine: Machine, constraints: Constraints) -> Budget:
    """Safe figures under the constraints, less the headroom."""
    host_safe = _smaller(machine.host_safe_bytes, constraints.host_memory_bytes)
    gpu_safe = min(machine.gpu_safe_bytes, host_safe if machine.shared_memory else 2**63)
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


def plan(
    ladder: Sequence[Tier], model: ModelShape, machine: Machine, constraints: Constraints
) -> Result:
    """Chooses the highest tier that fits, and its fastest set; judges every other tier.

    With `constraints.tier` the choice is that tier or none.
    """
    budget = budget_for(machine, constraints)
    sets = usable_sets(machine, constraints.exact_only)
    verdicts = tuple(judge(tier, sets, model, machine, constraints, budget) for tier in ladder)
    eligible = [
        verdict for verdict in verdicts
        if verdict.fits and constraints.tier in (0, verdict.tier.tier)
    ]  # fmt: skip
    chosen = eligible[-1].candidate if eligible else None
    return Result(chosen, verdicts, budget)


def usable_sets(machine: Machine, exact_only: bool) -> list[OptimizationSet]:
    """Legal sets whose dtype the machine has a rate for."""
    return [
        chosen
        for chosen in legal_sets(machine, exact_only)
        if matmul_rate(machine.rates, chosen.dtype) > 0
    ]


def judge(
    tier: Tier,
    sets: Iterable[OptimizationSet],
    model: ModelShape,
    machine: Machine,
    constraints: Constraints,
    budget: Budget,
) -> Verdict:
    """The verdict on one tier: the fastest set that fits, else the one that comes nearest."""
    judged = [
        (_shortfalls(candidate, budget, constraints), candidate)
        for candidate in (evaluate(tier, chosen, model, machine) for chosen in sets)
    ]
    if not judged:
        text = remedy_for_kernel(machine)
        return Verdict(tier, None, Resource.SOFTWARE, 0, 0.0, text)
    shortfalls, candidate = min(judged, key=lambda pair: _order(*pair))
    if model.reads_at_most(tier.tokens):
        text = remedy_for_window(model, tier)
        return Verdict(tier, candidate, Resource.SOFTWARE, 0, 0.0, text)
    if not shortfalls:
        return Verdict(tier, candidate, None, 0, 0.0, "")
    return _refusal(candidate, shortfalls, constraints)


def _refusal(
    candidate: Candidate, shortfalls: Mapping[Resource, float], constraints: Constraints
) -> Verdict:
    """The verdict on the candidate that came nearest: what binds, by how much, what to do."""
    binding = max(shortfalls, key=lambda resource: shortfalls[resource])
    missing = shortfalls[binding]
    if binding is Resource.TIME:
        text = remedy_for_time(candidate.cost.seconds)
        return Verdict(candidate.tier, candidate, binding, 0, missing, text)
    if binding is Resource.GPU_MEMORY:
        needed = candidate.memory.device.total_bytes / (1 - constraints.headroom_fraction)
        text = remedy_for_gpu(missing, needed)
    else:
        text = remedy_for_bytes(missing, binding.value)
    if constraints.exact_only:
        text += ALLOW_LOSSY
    return Verdict(candidate.tier, candidate, binding, int(missing), 0.0, text)


def evaluate(tier: Tier, chosen: OptimizationSet, model: ModelShape, machine: Machine) -> Candidate:
    """Memory and time of one tier under one set."""
    memory = run_memory(model, tier, chosen, machine)
    return Candidate(tier, chosen, memory, step_cost(model, tier, chosen, machine))


def _shortfalls(
    candidate: Candidate, budget: Budget, constraints: Constraints
) -> dict[Resource, float]:
    memory = candidate.memory
    on_device = memory.device.total_bytes - budget.gpu_bytes
    on_host = memory.host.total_bytes - budget.host_bytes
    if budget.one_pool:
        needs = {Resource.HOST_MEMORY: max(on_device, on_host)}
    else:
        needs = {Resource.GPU_MEMORY: on_device, Resource.HOST_MEMORY: on_host}
    if budget.disk_bytes:
        needs[Resource.DISK] = memory.disk.total_bytes - budget.disk_bytes
    missing: dict[Resource, float] = {name: value for name, value in needs.items() if value > 0}
    seconds = candidate.cost.seconds - constraints.max_step_seconds
    # Seconds do not compare with bytes: time binds only where memory does not.
    if not missing and constraints.max_step_seconds and seconds > 0:
        missing[Resource.TIME] = seconds
    return missing


def _order(shortfalls: dict[Resource, float], candidate: Candidate) -> tuple[int, float, float]:
    """Fitting sets first, by time; then those that miss only the time limit; then by bytes."""
    if not shortfalls:
        return 0, candidate.cost.seconds, candidate.memory.device.total_bytes
    if Resource.TIME in shortfalls:
        return 1, candidate.cost.seconds, 0.0
    return 2, sum(shortfalls.values()), candidate.cost.seconds
