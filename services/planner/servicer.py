"""PlannerService: convert, call a pure function, convert."""

# gRPC fixes the names and the arguments of the methods.
# ruff: noqa: ARG002, N802

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf import json_format
from prometheus_client import REGISTRY, CollectorRegistry

from elite.planner.v1 import planner_pb2 as pb
from elite.planner.v1 import planner_pb2_grpc
from services.common.server import ServiceDefinition
from services.planner import requests, responses
from services.planner.gpus import gpu_cards
from services.planner.ladder import Tier, load_ladder
from services.planner.metrics import PlannerMetrics
from services.planner.models import ModelShape, catalogue
from services.planner.notes import plan_notes
from services.planner.outcomes import OutcomeStore
from services.planner.search import budget_for, judge, plan
from services.planner.settings import PlannerSettings

SERVICE_NAME = "elite.planner.v1.PlannerService"


class PlannerServicer(planner_pb2_grpc.PlannerServiceServicer):
    """The planner over gRPC. Answers are computed anew on every call."""

    def __init__(
        self, ladder: tuple[Tier, ...], outcomes: OutcomeStore, metrics: PlannerMetrics
    ) -> None:
        self._ladder = ladder
        self._outcomes = outcomes
        self._metrics = metrics

    async def Plan(self, request: pb.PlanRequest, context: Any) -> pb.PlanResponse:
        """Chooses the best tier and set, with a verdict on every tier."""
        model = requests.read_model(request.model)
        machine = requests.read_machine(request.machine, request.constraints)
        constraints = requests.read_constraints(request.constraints, self._ladder)
        requests.check_objective(request.objective, constraints)
        result = plan(self._ladder, model, machine, constraints)
        response = pb.PlanResponse(
            budget=responses.budget_message(result.budget, machine),
            tiers=[responses.verdict_message(verdict, model) for verdict in result.verdicts],
            model=responses.model_message(model),
            notes=plan_notes(machine, model, result.chosen),
        )
        if result.chosen is not None:
            response.chosen.CopyFrom(
                responses.plan_message(result.chosen, model, machine, result.budget)
            )
        self._count(response)
        return response

    async def Estimate(self, request: pb.EstimateRequest, context: Any) -> pb.EstimateResponse:
        """Costs one tier under one set."""
        model = requests.read_model(request.model)
        machine = requests.read_machine(request.machine, request.constraints)
        constraints = requests.read_constraints(request.constraints, self._ladder)
        tier = requests.find_tier(self._ladder, request.tier, "tier")
        ids = list(request.optimization_ids)
        chosen = requests.read_set(ids, machine, constraints.exact_only)
        budget = budget_for(machine, constraints)
        verdict = judge(tier, [chosen], model, machine, constraints, budget)
        assert verdict.candidate is not None
        return pb.EstimateResponse(
            plan=responses.plan_message(verdict.candidate, model, machine, budget),
            budget=responses.budget_message(budget, machine),
            verdict=responses.verdict_message(verdict, model),
            notes=plan_notes(machine, model, verdict.candidate),
        )

    async def ListTiers(self, request: pb.ListTiersRequest, context: Any) -> pb.ListTiersResponse:
        """The ladder, custom tiers included."""
        return pb.ListTiersResponse(tiers=[responses.tier_message(tier) for tier in self._ladder])

    async def ListOptimizations(
        self,
        request: pb.ListOptimizationsRequest,
        context: Any,
    ) -> pb.ListOptimizationsResponse:
        """The catalogue of optimisations."""
        return pb.ListOptimizationsResponse(optimizations=responses.optimization_messages())

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Any
    ) -> pb.ListModelsResponse:
        """The catalogue of models."""
        models: list[ModelShape] = list(catalogue().values())
        return pb.ListModelsResponse(models=[responses.model_message(model) for model in models])

    async def ListGpus(self, request: pb.ListGpusRequest, context: Any) -> pb.ListGpusResponse:
        """The card table."""
        cards = gpu_cards().values()
        return pb.ListGpusResponse(gpus=[responses.gpu_message(card) for card in cards])

    async def ReportOutcome(
        self,
        request: pb.ReportOutcomeRequest,
        context: Any,
    ) -> pb.ReportOutcomeResponse:
        """Keeps what a run took beside what was predicted for it."""
        memory_error = _relative(
            request.plan.gpu_memory.total_bytes, request.measured_gpu_peak_bytes
        )
        time_error = _relative(request.plan.step_seconds, request.measured_step_seconds)
        outcome = json_format.MessageToDict(request)
        count = await asyncio.to_thread(self._outcomes.append, outcome)
        self._observe("gpu_memory", memory_error, request.plan.gpu_memory.total_bytes)
        self._observe("step_time", time_error, request.plan.step_seconds)
        host = request.plan.host_memory.total_bytes
        self._observe("host_memory", _relative(host, request.measured_host_peak_bytes), host)
        return pb.ReportOutcomeResponse(
            gpu_memory_error=memory_error, step_time_error=time_error, recorded_outcomes=count
        )

    def _count(self, response: pb.PlanResponse) -> None:
        tier = str(response.chosen.tier) if response.HasField("chosen") else "none"
        self._metrics.plans.labels(tier).inc()
        for verdict in response.tiers:
            if not verdict.fits:
                name = pb.Resource.Name(verdict.binding_resource).removeprefix("RESOURCE_")
                self._metrics.refused_tiers.labels(name.lower()).inc()

    def _observe(self, resource: str, error: float, predicted: float) -> None:
        """Runs that were not predicted or not measured say nothing about predictions."""
        if predicted and error > -1:
            self._metrics.prediction_error.labels(resource).observe(error)


def _relative(predicted: float, measured: float) -> float:
    """predicted / measured - 1; 0 when it was not measured."""
    return predicted / measured - 1 if measured > 0 else 0.0


def planner_service(settings: PlannerSettings) -> ServiceDefinition:
    """The planner as a service. Raises `LadderFileError` when the ladder file is wrong."""
    ladder = load_ladder(settings.ladder_file)
    servicer = PlannerServicer(ladder, OutcomeStore(settings.state_directory), _process_metrics())

    def register(server: Any) -> None:
        planner_pb2_grpc.add_PlannerServiceServicer_to_server(servicer, server)

    return ServiceDefinition(SERVICE_NAME, "planner", register)


_metrics: dict[int, PlannerMetrics] = {}


def _process_metrics(registry: CollectorRegistry = REGISTRY) -> PlannerMetrics:
    """One set of metrics per registry: Prometheus refuses a second registration."""
    if id(registry) not in _metrics:
        _metrics[id(registry)] = PlannerMetrics(registry)
    return _metrics[id(registry)]
