"""Answers to the planner's questions: pure functions from what was asked to the response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from elite.planner.v1 import planner_pb2 as pb
from services.common.errors import ErrorReason, invalid_field
from services.planner import responses
from services.planner.adapters import Adapters
from services.planner.budgets import Constraints
from services.planner.calibration import UNCALIBRATED, Correction
from services.planner.evaluation import Candidate
from services.planner.explanation import derivations
from services.planner.gpus import GpuCard
from services.planner.ladder import Tier
from services.planner.machine import Machine
from services.planner.memory import Sizing
from services.planner.models import ModelShape
from services.planner.notes import plan_notes
from services.planner.options import OptimizationSet
from services.planner.schedule import RunCost, Schedule, Stage, run_cost, start_seconds
from services.planner.search import Search
from services.planner.verdicts import Verdict


@dataclass(frozen=True, slots=True)
class Question:
    """A request, converted."""

    ladder: tuple[Tier, ...]
    model: ModelShape
    machine: Machine
    constraints: Constraints
    adapters: Adapters
    correction: Correction = UNCALIBRATED
    explain: bool = False

    @property
    def schedule(self) -> Schedule | None:
        """How long the run is, where the caller said so."""
        return self.constraints.schedule


def answer_plan(question: Question) -> pb.PlanResponse:
    """Chooses the longest context that fits, and its fastest set; judges every other tier.

    Raises `ServiceError` for a curriculum whose stages do not fit.
    """
    search = _search(question)
    result = search.choose(question.ladder)
    verdicts, chosen = result.verdicts, result.chosen
    response = pb.PlanResponse(
        budget=responses.budget_message(search.budget, question.machine),
        tiers=[_verdict_message(verdict, question) for verdict in verdicts],
        model=responses.model_message(question.model),
        notes=plan_notes(question.machine, question.model, chosen),
    )
    if chosen is not None:
        stages = _stage_candidates(question, verdicts)
        response.chosen.CopyFrom(_plan_message(chosen, stages, question, search))
    return response


def answer_estimate(
    question: Question, tier: Tier, chosen: OptimizationSet, sizing: Sizing
) -> pb.EstimateResponse:
    """Costs one tier under one set; chooses nothing."""
    search = _search(question)
    verdict = search.judge(tier, chosen, sizing)
    assert verdict.candidate is not None
    stages: list[tuple[Stage, Candidate]] = []
    if question.schedule and question.schedule.curriculum:
        stages = _stage_candidates(question, search.judge_all(question.ladder))
    return pb.EstimateResponse(
        plan=_plan_message(verdict.candidate, stages, question, search),
        budget=responses.budget_message(search.budget, question.machine),
        verdict=_verdict_message(verdict, question),
        notes=plan_notes(question.machine, question.model, verdict.candidate),
    )


def answer_what_if(questions: Sequence[tuple[GpuCard, Question]]) -> pb.WhatIfResponse:
    """One plan per card, best card first."""
    shared = set.intersection(*(set(q.machine.notes) for _, q in questions))
    ranked = sorted(
        (_alternative(card, question, shared) for card, question in questions), key=_rank
    )
    _, question = questions[0]
    return pb.WhatIfResponse(
        alternatives=ranked,
        model=responses.model_message(question.model),
        notes=[note for note in question.machine.notes if note in shared],
    )


def _alternative(card: GpuCard, question: Question, shared: set[str]) -> pb.Alternative:
    response = answer_plan(question)
    wanted = question.constraints.tier or response.chosen.tier or response.tiers[0].tier
    notes = [note for note in response.notes if note not in shared]
    alternative = pb.Alternative(
        gpu_id=card.gpu_id,
        name=card.name,
        verdict=next(verdict for verdict in response.tiers if verdict.tier == wanted),
        notes=notes,
    )
    if response.HasField("chosen"):
        alternative.chosen.CopyFrom(response.chosen)
    return alternative


def _rank(alternative: pb.Alternative) -> tuple[bool, int, float, int, str]:
    """Cards that fit first; then the longer context, the faster step, the smaller shortfall."""
    verdict = alternative.verdict
    fits = alternative.HasField("chosen")
    tokens = verdict.context_tokens if fits else 0
    return not fits, -tokens, verdict.step_seconds, verdict.shortfall_bytes, alternative.gpu_id


def _search(question: Question) -> Search:
    return Search(
        question.model, question.machine, question.constraints, question.adapters,
        question.correction,
    )  # fmt: skip


def _plan_message(
    chosen: Candidate,
    stages: list[tuple[Stage, Candidate]],
    question: Question,
    search: Search,
) -> pb.Plan:
    answer = responses.Answer(
        question.model,
        question.machine,
        search.budget,
        question.adapters,
        question.correction,
        run=_run_cost(chosen, stages, question),
        derivations=derivations(chosen, search.evaluation, question.machine)
        if question.explain
        else (),
    )
    return responses.plan_message(chosen, answer)


def _run_cost(
    chosen: Candidate, stages: list[tuple[Stage, Candidate]], question: Question
) -> RunCost | None:
    schedule = question.schedule
    if schedule is None:
        return None
    last = Stage(chosen.tier, schedule.steps_at(chosen.tier))
    start = start_seconds(question.model, chosen, question.machine)
    return run_cost(schedule, [*stages, (last, chosen)], start, question.machine)


def _stage_candidates(
    question: Question, verdicts: Sequence[Verdict]
) -> list[tuple[Stage, Candidate]]:
    """The candidate of every curriculum stage. Raises `ServiceError` for one that does not fit."""
    if question.schedule is None:
        return []
    by_tier = {verdict.tier.tier: verdict for verdict in verdicts}
    found = []
    for index, stage in enumerate(question.schedule.curriculum):
        verdict = by_tier[stage.tier.tier]
        if not verdict.fits or verdict.candidate is None:
            field = f"schedule.curriculum[{index}].tier"
            problem = f"is {stage.tier.tier}, which does not fit this machine"
            reason = ErrorReason.PRECONDITION_FAILED
            raise invalid_field(field, problem, verdict.remedy, reason=reason)
        found.append((stage, verdict.candidate))
    return found


def _verdict_message(verdict: Verdict, question: Question) -> pb.TierVerdict:
    run_seconds = 0.0
    if question.schedule and verdict.totals:
        run_seconds = verdict.totals.seconds * question.schedule.windows_at(verdict.tier)
    return responses.verdict_message(verdict, question.model, run_seconds)
