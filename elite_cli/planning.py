"""From options to a plan: profile if need be, measure if need be, ask the planner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2
from elite_cli import plan_requests as parts
from elite_cli.client import CallError
from elite_cli.connections import Connections
from elite_cli.errors import bad_option
from elite_cli.model_reference import ModelChoice
from elite_cli.options import MachineOptions
from elite_cli.output import note
from elite_cli.plan_requests import PlanOptions
from elite_cli.quantities import format_bytes
from elite_cli.stress import run_stress_test

MISSING_MEASUREMENT = "MISSING_MEASUREMENT"


@dataclass(frozen=True)
class Planned:
    """A question to the planner and its answer."""

    request: planner_pb2.PlanRequest
    response: planner_pb2.PlanResponse


def make_plan(connections: Connections, model: ModelChoice, options: PlanOptions) -> Planned:
    """Asks the planner; runs the quick stress test once when measurements are missing.

    Raises `CliError` for bad options and failed calls.
    """
    request = planner_pb2.PlanRequest(
        model=parts.model_reference(model),
        constraints=parts.constraints(options, given_host=bool(options.machine.gpu)),
        objective=parts.OBJECTIVES[options.choice.objective],
        adapters=parts.adapters(options.adapters),
        schedule=parts.schedule(options.schedule),
        explain=options.explain,
    )
    return Planned(request, _ask(connections, options.machine, "Plan", request))


def make_estimate(
    connections: Connections,
    model: ModelChoice,
    options: PlanOptions,
    tier: int,
    optimization_ids: list[str],
) -> planner_pb2.EstimateResponse:
    """Asks the planner for the cost of one tier; measures as `make_plan` does."""
    request = planner_pb2.EstimateRequest(
        model=parts.model_reference(model),
        constraints=parts.constraints(options, given_host=bool(options.machine.gpu)),
        tier=tier,
        optimization_ids=optimization_ids,
        adapters=parts.adapters(options.adapters),
        schedule=parts.schedule(options.schedule),
        explain=options.explain,
    )
    response: planner_pb2.EstimateResponse = _ask(connections, options.machine, "Estimate", request)
    return response


def compare_cards(
    connections: Connections, model: ModelChoice, options: PlanOptions, cards: str
) -> planner_pb2.WhatIfResponse:
    """Asks the planner to rank cards; `cards` as in --compare. Raises `CliError`."""
    machine = options.machine
    for option, given in (("--gpu", machine.gpu is not None),
                          ("--device", machine.device is not None),
                          ("--explain", options.explain)):  # fmt: skip
        if given:
            raise bad_option(option, "does not go with --compare", "leave one of them out")
    request = planner_pb2.WhatIfRequest(
        gpu_ids=parts.compared_cards(cards),
        model=parts.model_reference(model),
        constraints=parts.constraints(options, given_host=True),
        objective=parts.OBJECTIVES[options.choice.objective],
        adapters=parts.adapters(options.adapters),
        schedule=parts.schedule(options.schedule),
    )
    host = _host(connections, machine, "Every card is put")
    request.host_memory_bytes, request.disk_free_bytes = host
    response: planner_pb2.WhatIfResponse = connections.planner.call("WhatIf", request)
    return response


def _ask(connections: Connections, machine: MachineOptions, method: str, request: Any) -> Any:
    """Fills in the machine and calls; measures the machine when that turns out to be needed."""
    request.machine.CopyFrom(_machine(connections, machine))
    try:
        return connections.planner.call(method, request)
    except CallError as error:
        if error.reason != MISSING_MEASUREMENT or machine.gpu:
            raise
    note("This machine has not been measured yet: running the quick stress test once.")
    request.machine.profile.CopyFrom(run_stress_test(connections.profiler, quick=True))
    return connections.planner.call(method, request)


def _machine(connections: Connections, options: MachineOptions) -> planner_pb2.Machine:
    if options.gpu is None:
        return planner_pb2.Machine(profile=fetch_profile(connections))
    if options.device is not None:
        raise bad_option("--device", "does not go with --gpu", "leave one of them out")
    if not options.gpu.strip():
        raise bad_option("--gpu", "is empty", "give an id from `elite gpus`, or leave it out")
    memory, disk = _host(connections, options, "The card is put")
    hypothetical = planner_pb2.HypotheticalMachine(
        gpu_id=options.gpu, host_memory_bytes=memory, disk_free_bytes=disk
    )
    return planner_pb2.Machine(hypothetical=hypothetical)


def _host(connections: Connections, options: MachineOptions, what: str) -> tuple[int, int]:
    """Memory and free disk of the host a card is put in; without sizes, those of this machine."""
    memory = parts.size(options.host_ram, "--host-ram")
    disk = parts.size(options.disk, "--disk")
    if memory:
        return memory, disk
    host = fetch_profile(connections).host
    note(
        f"{what} in a host like this machine ({format_bytes(host.memory_total_bytes)} of memory); "
        "--host-ram and --disk change that."
    )
    return host.memory_total_bytes, disk or host.scratch_disk.free_bytes


def fetch_profile(connections: Connections) -> profiler_pb2.NodeProfile:
    """The profiler's snapshot. Raises `CallError`."""
    response: profiler_pb2.GetProfileResponse = connections.profiler.call(
        "GetProfile", profiler_pb2.GetProfileRequest()
    )
    return response.profile
