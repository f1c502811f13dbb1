"""The plans `python -m bench.ladder` measures: one for each row, on a card of the row's memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.memory import config_of
from elite.planner.v1 import planner_pb2 as pb
from services.planner import responses
from services.planner.adapters import EVERY_LINEAR
from services.planner.budgets import Constraints, budget_for
from services.planner.evaluation import Candidate, Evaluation
from services.planner.gpus import gpu_cards
from services.planner.ladder import Tier
from services.planner.machine import Machine, hypothetical_machine
from services.planner.memory import Sizing
from services.planner.models import ModelShape, model_by_id
from services.planner.options import GROUPED_QUERY_CONVERSION, OptimizationSet
from services.planner.search import Search
from services.planner.static_memory import Static, static_memory
from services.planner.terms import set_terms, tier_terms

# Rates, dtypes and kernels are this card's; its memory is the row's. Rates only choose between sets
# that fit.
CARD = "rtx-3090"
HOST_BYTES = 2**40
DISK_BYTES = 32 * 2**40


@dataclass(frozen=True, slots=True)
class Subject:
    """A model as a row has it. config: all of its config.json.

    converted: its key and value heads are pooled, by `grouped-query-conversion`.
    """

    name: str
    shape: ModelShape
    config: Mapping[str, Any]
    converted: bool = False

    @property
    def key_value_heads(self) -> int:
        """Heads it is converted to; 0 leaves it."""
        return self.shape.convertible_key_value_heads if self.converted else 0

    @property
    def key_value_width(self) -> int:
        """Channels of all key heads of one layer, after the conversion."""
        return self.shape.with_key_value_heads(self.key_value_heads).key_value_width

    @property
    def allowed(self) -> frozenset[str]:
        """Permissions that a plan for it is asked with."""
        return frozenset({GROUPED_QUERY_CONVERSION} if self.converted else ())


@dataclass(frozen=True, slots=True)
class Planned:
    """What the planner chose for a row, as a message and in figures."""

    subject: Subject
    tier: Tier
    machine: Machine
    candidate: Candidate
    message: pb.Plan

    @property
    def chosen(self) -> OptimizationSet:
        """The optimisation set."""
        return self.candidate.chosen

    def static(self) -> Static:
        """Weights, adapters and optimizer states, and a weight that NF4 makes again, in bytes."""
        model, _ = Evaluation(self.subject.shape, self.machine).terms(self.chosen)
        return static_memory(model, tier_terms([self.tier]), set_terms([self.chosen]))


def subjects() -> Mapping[str, Subject]:
    """The models of the ladder's rows, by name."""
    phi, qwen = _of_catalogue("phi-2"), _of_catalogue("qwen2.5-1.5b")
    converted = replace(phi, name="phi-2 grouped-query", converted=True)
    return {subject.name: subject for subject in (phi, converted, qwen)}


def _of_catalogue(model_id: str) -> Subject:
    shape = model_by_id(model_id)
    return Subject(model_id, shape, config_of(shape))


def runtime_bytes() -> int:
    """What the planner sets aside for the CUDA context: a table figure."""
    return gpu_cards()[CARD].runtime_overhead_bytes


def machine_with(vram_bytes: int) -> Machine:
    """A card of exactly so many bytes, with the context taken off as the planner takes it."""
    usual = hypothetical_machine(CARD, HOST_BYTES, DISK_BYTES)
    return replace(usual, gpu_safe_bytes=vram_bytes - runtime_bytes())


def plan_row(subject: Subject, tier: Tier) -> Planned | str:
    """The planner's choice for one row; in words, what would make it fit where nothing does.

    Raises `RuntimeError` when a model that is to be converted is planned as it is.
    """
    machine = machine_with(tier.reference_vram_bytes)
    search = Search(subject.shape, machine, Constraints(allowed=subject.allowed))
    (verdict,) = search.judge_all([tier])
    if not verdict.fits or verdict.candidate is None:
        return verdict.remedy
    planned = _planned(subject, machine, verdict.candidate)
    if planned.chosen.key_value_heads != subject.key_value_heads:
        raise RuntimeError(f"{subject.name}, tier {tier.tier}: planned without the conversion")
    return planned


def plan_set(subject: Subject, tier: Tier, chosen: OptimizationSet, chunk_tokens: int) -> Planned:
    """A plan that was not chosen: this set, with chunks of this length."""
    chosen = replace(chosen, key_value_heads=subject.key_value_heads)
    machine = machine_with(2**50)
    evaluation = Evaluation(subject.shape, machine)
    return _planned(
        subject, machine, evaluation.one(tier, chosen, Sizing(chunk_tokens=chunk_tokens))
    )


def _planned(subject: Subject, machine: Machine, candidate: Candidate) -> Planned:
    budget = budget_for(machine, Constraints())
    answer = responses.Answer(subject.shape, machine, budget, EVERY_LINEAR)
    message = responses.plan_message(candidate, answer)
    return Planned(subject, candidate.tier, machine, candidate, message)
