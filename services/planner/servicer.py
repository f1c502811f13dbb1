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
from services.planner.attention_kernels import best_kernel
from services.planner.calibration import Calibration, is_used, key_of
from services.planner.gpus import gpu_cards
from services.planner.ladder import Tier, load_ladder
from services.planner.machine import Machine
from services.planner.metrics import PlannerMetrics
from services.planner.models import ModelShape, catalogue
from services.planner.outcomes import OutcomeStore
from services.planner.planning import Question, answer_estimate, answer_plan, answer_what_if
from services.planner.set_requests import read_chosen
from services.planner.settings import PlannerSettings

SERVICE_NAME = "elite.planner.v1.PlannerService"


class PlannerServicer(planner_pb2_grpc.PlannerServiceServicer):
    """The planner over gRPC. Answers are computed anew on every call."""

    def __init__(
        self, ladder: tuple[Tier, ...], outcomes: OutcomeStore, metrics: PlannerMetrics
    ) -> None:
        self._ladder = ladder
        self._outcomes = outcomes
        self._calibration = Calibration(outcomes)
        self._metrics = metrics

    async def Plan(self, request: pb.PlanRequest, context: Any) -> pb.PlanResponse:
        """Chooses the best tier and set, with a verdict on every tier."""
        machine = requests.read_machine(request.machine, request.constraints)
        question = self._question(request, machine, explain=request.explain)
        requests.check_objective(request.objective, question.constraints)
        response = answer_plan(question)
        self._count(response)
        return response

    async def Estimate(self, request: pb.EstimateRequest, context: Any) -> pb.EstimateResponse:
        """Costs one tier under one set."""
        machine = requests.read_machine(request.machine, request.constraints)
        question = self._question(request, machine, explain=request.explain)
        tier = requests.find_tier(self._ladder, request.tier, "tier")
        chosen, sizing = read_chosen(request, question.model, machine)
        return answer_estimate(question, tier, chosen, sizing)

    async def WhatIf(self, request: pb.WhatIfRequest, context: Any) -> pb.WhatIfResponse:
        """One plan per card, best card first."""
        cards = requests.read_cards(request)
        questions = [
            (card, self._question(request, requests.machine_with(card, request))) for card in cards
        ]
        requests.check_objective(request.objective, questions[0][1].constraints)
        return answer_what_if(questions)

    def _question(
        self,
        request: pb.PlanRequest | pb.EstimateRequest | pb.WhatIfRequest,
        machine: Machine,
        explain: bool = False,
    ) -> Question:
        model = requests.read_model(request.model)
        schedule = None
        if request.HasField("schedule"):
            schedule = requests.read_schedule(request.schedule, self._ladder)
        kernel = best_kernel(machine.attention_kernels, model.head_size) or ""
        return Question(
            ladder=self._ladder,
            model=model,
            machine=machine,
            constraints=requests.read_constraints(request.constraints, self._ladder, schedule),
            adapters=requests.read_adapters(request.adapters, model, machine),
            correction=self._calibration.correction(key_of(machine, kernel)),
            explain=explain,
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
        count, used = await asyncio.to_thread(self._keep, outcome)
        self._observe("gpu_memory", memory_error, request.plan.gpu_memory.total_bytes)
        self._observe("step_time", time_error, request.plan.step_seconds)
        host = request.plan.host_memory.total_bytes
        self._observe("host_memory", _relative(host, request.measured_host_peak_bytes), host)
        return pb.ReportOutcomeResponse(
            gpu_memory_error=memory_error or 0.0, step_time_error=time_error or 0.0,
            recorded_outcomes=count,
            used=used,
        )  # fmt: skip

    def _keep(self, outcome: dict[str, Any]) -> tuple[int, bool]:
        """How many there are then, and whether plans learn from this one. Blocks on the disk."""
        count = self._outcomes.append(outcome)
        return count, is_used(outcome, self._outcomes.read())

    def _count(self, response: pb.PlanResponse) -> None:
        tier = str(response.chosen.tier) if response.HasField("chosen") else "none"
        self._metrics.plans.labels(tier).inc()
        for verdict in response.tiers:
            if not verdict.fits:
                name = pb.Resource.Name(verdict.binding_resource).removeprefix("RESOURCE_")
                self._metrics.refused_tiers.labels(name.lower()).inc()

    def _observe(self, resource: str, error: float | None, predicted: float) -> None:
        """Runs that were not predicted or not measured say nothing about predictions."""
        if predicted and error is not None:
            self._metrics.prediction_error.labels(resource).observe(error)


def _relative(predicted: float, measured: float) -> float | None:
    """predicted / measured - 1; nothing when it was not measured."""
    return predicted / measured - 1 if measured > 0 else None


def planner_service(settings: PlannerSettings) -> ServiceDefinition:
    """The planner as a service. Raises `LadderFileError` when the ladder file is wrong."""
    ladder = load_ladder(settings.ladder_file)
    servicer = PlannerServicer(ladder, OutcomeStore(settings.state_directory), _process_metrics())

    def register(server: Any) -> None:
        """Adds the planner to a server."""
        planner_pb2_grpc.add_PlannerServiceServicer_to_server(servicer, server)

    return ServiceDefinition(SERVICE_NAME, "planner", register)


_metrics: dict[int, PlannerMetrics] = {}


def _process_metrics(registry: CollectorRegistry = REGISTRY) -> PlannerMetrics:
    """One set of metrics per registry: Prometheus refuses a second registration."""
    if id(registry) not in _metrics:
        _metrics[id(registry)] = PlannerMetrics(registry)
    return _metrics[id(registry)]
