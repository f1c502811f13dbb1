"""From options to a plan: profile if need be, measure if need be, ask the planner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2
from elite_cli.client import CallError
from elite_cli.connections import Connections
from elite_cli.errors import bad_option
from elite_cli.model_reference import ModelChoice
from elite_cli.options import ObjectiveName
from elite_cli.output import note
from elite_cli.quantities import format_bytes, parse_duration, parse_size
from elite_cli.stress import run_stress_test

MISSING_MEASUREMENT = "MISSING_MEASUREMENT"

_OBJECTIVES = {
    ObjectiveName.MAX_CONTEXT: planner_pb2.OBJECTIVE_MAX_CONTEXT,
    ObjectiveName.FASTEST: planner_pb2.OBJECTIVE_FASTEST,
}


@dataclass(frozen=True)
class PlanOptions:
    """The planning options of a command line, sizes and durations still as written."""

    gpu: str = ""
    host_ram: str = ""
    disk: str = ""
    max_step_seconds: str = ""
    exact_only: bool = False
    tier: int | None = None
    headroom: float | None = None
    objective: ObjectiveName = ObjectiveName.MAX_CONTEXT
    device: int | None = None


def make_plan(
    connections: Connections, model: ModelChoice, options: PlanOptions
) -> planner_pb2.PlanResponse:
    """Asks the planner; runs the quick stress test once when measurements are missing.

    Raises `CliError` for bad options and failed calls.
    """
    request = planner_pb2.PlanRequest(
        model=model_reference(model),
        constraints=_constraints(options),
        objective=_OBJECTIVES[options.objective],
    )
    response: planner_pb2.PlanResponse = _ask(connections, options, "Plan", request)
    return response


def make_estimate(
    connections: Connections,
    model: ModelChoice,
    options: PlanOptions,
    tier: int,
    optimization_ids: list[str],
) -> planner_pb2.EstimateResponse:
    """Asks the planner for the cost of one tier; measures as `make_plan` does."""
    request = planner_pb2.EstimateRequest(
        model=model_reference(model),
        constraints=_constraints(options),
        tier=tier,
        optimization_ids=optimization_ids,
    )
    response: planner_pb2.EstimateResponse = _ask(connections, options, "Estimate", request)
    return response


def _ask(connections: Connections, options: PlanOptions, method: str, request: Any) -> Any:
    """Fills in the machine and calls; measures the machine when that turns out to be needed."""
    request.machine.CopyFrom(_machine(connections, options))
    try:
        return connections.planner.call(method, request)
    except CallError as error:
        if error.reason != MISSING_MEASUREMENT or options.gpu:
            raise
    note("This machine has not been measured yet: running the quick stress test once.")
    request.machine.profile.CopyFrom(run_stress_test(connections.profiler, quick=True))
    return connections.planner.call(method, request)


def model_reference(model: ModelChoice) -> planner_pb2.ModelReference:
    """The model as the planner's requests name it."""
    if model.config_json:
        return planner_pb2.ModelReference(config_json=model.config_json)
    return planner_pb2.ModelReference(model_id=model.model_id)


def _constraints(options: PlanOptions) -> planner_pb2.Constraints:
    constraints = planner_pb2.Constraints(exact_only=options.exact_only, tier=options.tier or 0)
    if options.max_step_seconds:
        constraints.max_step_seconds = parse_duration(
            options.max_step_seconds, "--max-step-seconds"
        )
    if options.headroom is not None:
        constraints.headroom_fraction = options.headroom
    if options.device is not None:
        constraints.device_index = options.device
    if not options.gpu:  # with a card, these two describe its machine instead
        constraints.host_memory_bytes = _size(options.host_ram, "--host-ram")
        constraints.disk_bytes = _size(options.disk, "--disk")
    return constraints


def _size(text: str, option: str) -> int:
    return parse_size(text, option) if text else 0


def _machine(connections: Connections, options: PlanOptions) -> planner_pb2.Machine:
    if not options.gpu:
        return planner_pb2.Machine(profile=fetch_profile(connections))
    if options.device is not None:
        raise bad_option("--device", "does not go with --gpu", "leave one of them out")
    return planner_pb2.Machine(hypothetical=_hypothetical(connections, options))


def _hypothetical(
    connections: Connections, options: PlanOptions
) -> planner_pb2.HypotheticalMachine:
    """The card in a host of the size given; without one, in a host like this machine."""
    hypothetical = planner_pb2.HypotheticalMachine(
        gpu_id=options.gpu,
        host_memory_bytes=_size(options.host_ram, "--host-ram"),
        disk_free_bytes=_size(options.disk, "--disk"),
    )
    if not options.host_ram:
        host = fetch_profile(connections).host
        hypothetical.host_memory_bytes = host.memory_total_bytes
        if not options.disk:
            hypothetical.disk_free_bytes = host.scratch_disk.free_bytes
        note(
            f"The card is put in a host like this machine ({format_bytes(host.memory_total_bytes)} "
            "of memory); --host-ram and --disk change that."
        )
    return hypothetical


def fetch_profile(connections: Connections) -> profiler_pb2.NodeProfile:
    """The profiler's snapshot. Raises `CallError`."""
    response: profiler_pb2.GetProfileResponse = connections.profiler.call(
        "GetProfile", profiler_pb2.GetProfileRequest()
    )
    return response.profile
