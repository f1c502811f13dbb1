"""Another plan for a run whose memory was not there: same window, same model, same adapters.

What a run has learned so far must fit the new plan: precision of the base weights, optimizer and
heads stay, and nothing lossy is added.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from elite.planner.v1 import planner_pb2, planner_pb2_grpc
from elite.profiler.v1 import profiler_pb2, profiler_pb2_grpc
from elite.trainer.v1 import trainer_pb2
from services.common.transport import open_channel

OUT_OF_MEMORY = (
    trainer_pb2.FAILURE_CAUSE_DEVICE_OUT_OF_MEMORY,
    trainer_pb2.FAILURE_CAUSE_HOST_OUT_OF_MEMORY,
)
# A new plan takes at most so much of what the one before was to take.
_SHARE = 0.85
_DEADLINE_SECONDS = 30.0
# What the adapters so far were trained with.
_KEPT: Mapping[str, Callable[[planner_pb2.Plan], object]] = {
    "window": lambda plan: (plan.context_tokens, plan.target_tokens),
    "adapters": lambda plan: plan.lora.SerializeToString(deterministic=True),
    "base precision": lambda plan: plan.execution.base_precision,
    "compute dtype": lambda plan: plan.execution.compute_dtype,
    "optimizer": lambda plan: plan.execution.optimizer,
    "key-value heads": lambda plan: plan.execution.key_value_head_count,
}


class NoPlanError(Exception):
    """There is none, and the message says why, and what would help. cause: what ran out."""

    def __init__(self, cause: trainer_pb2.FailureCause, message: str) -> None:
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class NewPlan:
    """A plan, and the event that tells of it."""

    plan: planner_pb2.Plan
    event: trainer_pb2.RunEvent


class Replanner:
    """Asks the planner of the worker's machine."""

    def __init__(self, planner_address: str, profiler_address: str) -> None:
        self._planner, self._profiler = planner_address, profiler_address

    def can(self, run: trainer_pb2.Run) -> bool:
        """Whether there is a planner, and a question to ask it."""
        return bool(self._planner) and run.spec.HasField("planned_by")

    async def more_frugal(self, run: trainer_pb2.Run, cause: trainer_pb2.FailureCause) -> NewPlan:
        """For a run that ran out of memory. Raises `NoPlanError`, and `grpc.RpcError`."""
        return await asyncio.to_thread(self._more_frugal, run, cause)

    async def for_this_machine(self, run: trainer_pb2.Run) -> NewPlan | None:
        """None when the run's plan fits what this machine has free now, or nobody can tell.

        Raises `NoPlanError` when no plan for its tier does, and `grpc.RpcError`.
        """
        if not self._profiler or not self.can(run):
            return None
        return await asyncio.to_thread(self._for_this_machine, run)

    def _more_frugal(self, run: trainer_pb2.Run, cause: trainer_pb2.FailureCause) -> NewPlan:
        plan, request = run.spec.plan, self._question(run)
        budget = self._ask(request).budget
        tighten(request, plan, budget, cause)
        on_host = cause == trainer_pb2.FAILURE_CAUSE_HOST_OUT_OF_MEMORY
        where, taken = ("host", plan.host_memory) if on_host else ("device", plan.gpu_memory)
        why = f"the plan's {_gibibytes(taken.total_bytes)} of {where} memory were not there"
        return compared(plan, self._ask(request), cause, why)

    def _for_this_machine(self, run: trainer_pb2.Run) -> NewPlan | None:
        plan, request = run.spec.plan, self._question(run)
        response = self._ask(request)
        lacks = [*shortfalls(plan, response.budget)]
        if not lacks:
            return None
        cause, why = lacks[0]
        return compared(plan, response, cause, why)

    def _question(self, run: trainer_pb2.Run) -> planner_pb2.PlanRequest:
        with open_channel(self._planner) as channel:
            stub = planner_pb2_grpc.PlannerServiceStub(channel)
            everything = planner_pb2.ListOptimizationsRequest()
            found = stub.ListOptimizations(everything, timeout=_DEADLINE_SECONDS).optimizations
        request = question(run, (one.id for one in found if not one.exact))
        if self._profiler:
            self._use_own_machine(request)
        return request

    def _use_own_machine(self, request: planner_pb2.PlanRequest) -> None:
        with open_channel(self._profiler) as channel:
            stub = profiler_pb2_grpc.ProfilerServiceStub(channel)
            found = stub.GetProfile(profiler_pb2.GetProfileRequest(), timeout=_DEADLINE_SECONDS)
        request.machine.profile.CopyFrom(found.profile)

    def _ask(self, request: planner_pb2.PlanRequest) -> planner_pb2.PlanResponse:
        with open_channel(self._planner) as channel:
            stub = planner_pb2_grpc.PlannerServiceStub(channel)
            response: planner_pb2.PlanResponse = stub.Plan(request, timeout=_DEADLINE_SECONDS)
        return response


def question(run: trainer_pb2.Run, lossy_ids: Iterable[str]) -> planner_pb2.PlanRequest:
    """What the run's plan was the answer to, for its tier alone and with nothing lossy added.

    lossy_ids: of all optimisations there are.
    """
    request = planner_pb2.PlanRequest()
    request.CopyFrom(run.spec.planned_by)
    request.explain = False
    constraints, plan = request.constraints, run.spec.plan
    constraints.tier = plan.tier
    present = {one.id for one in plan.optimizations}
    if not constraints.exact_only:
        kept = [name for name in constraints.allowed_lossy_ids if name in present]
        del constraints.allowed_lossy_ids[:], constraints.forbidden_lossy_ids[:]
        constraints.allowed_lossy_ids.extend(kept)
        constraints.forbidden_lossy_ids.extend(name for name in lossy_ids if name not in present)
    return request


def tighten(
    request: planner_pb2.PlanRequest,
    plan: planner_pb2.Plan,
    budget: planner_pb2.Budget,
    cause: trainer_pb2.FailureCause,
) -> None:
    """Leaves the planner less of what ran out than the plan was to take."""
    constraints, usable = request.constraints, 1 - budget.headroom_fraction
    if cause == trainer_pb2.FAILURE_CAUSE_HOST_OUT_OF_MEMORY:
        constraints.host_memory_bytes = int(_SHARE * plan.host_memory.total_bytes / usable)
    else:
        constraints.gpu_memory_bytes = int(_SHARE * plan.gpu_memory.total_bytes / usable)


def shortfalls(
    plan: planner_pb2.Plan, budget: planner_pb2.Budget
) -> list[tuple[trainer_pb2.FailureCause, str]]:
    """What the plan takes and the machine does not have now; an unknown disk is large enough."""
    needs = (
        (trainer_pb2.FAILURE_CAUSE_DEVICE_OUT_OF_MEMORY, "device memory",
         plan.gpu_memory.total_bytes, budget.gpu_safe_bytes),
        (trainer_pb2.FAILURE_CAUSE_HOST_OUT_OF_MEMORY, "host memory",
         plan.host_memory.total_bytes, budget.host_safe_bytes),
        (trainer_pb2.FAILURE_CAUSE_DISK_FULL, "disk",
         plan.disk.total_bytes, budget.disk_bytes or plan.disk.total_bytes),
    )  # fmt: skip
    return [
        (cause, f"the plan takes {_gibibytes(needed)} of {what}, and {_gibibytes(there)} are free")
        for cause, what, needed, there in needs
        if needed > there
    ]


def compared(
    old: planner_pb2.Plan,
    response: planner_pb2.PlanResponse,
    cause: trainer_pb2.FailureCause,
    why: str,
) -> NewPlan:
    """The response's plan beside the old one. Raises `NoPlanError` if it cannot replace it."""
    if not response.HasField("chosen"):
        remedies = [verdict.remedy for verdict in response.tiers if verdict.tier == old.tier]
        remedy = "; ".join(remedies) or "no such tier"
        raise NoPlanError(cause, f"{why}; for another plan: {remedy}")
    new = response.chosen
    changed = [name for name, of in _KEPT.items() if of(old) != of(new)]
    if changed:
        problem = f"every other plan changes the run's {', '.join(changed)}"
        raise NoPlanError(cause, f"{why}; {problem}")
    before, after = ({one.id for one in plan.optimizations} for plan in (old, new))
    replanned = trainer_pb2.Replanned(
        cause=cause,
        detail=why,
        device_bytes_before=old.gpu_memory.total_bytes,
        device_bytes_after=new.gpu_memory.total_bytes,
        step_seconds_before=old.step_seconds,
        step_seconds_after=new.step_seconds,
        optimizations_added=sorted(after - before),
        optimizations_dropped=sorted(before - after),
    )
    event = trainer_pb2.RunEvent(replanned=replanned)
    event.time.GetCurrentTime()
    return NewPlan(new, event)


def _gibibytes(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
