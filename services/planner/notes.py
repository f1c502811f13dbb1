"""What a caller should know beside the figures."""

from __future__ import annotations

from services.planner.evaluation import Candidate
from services.planner.machine import Machine
from services.planner.models import ModelShape


def plan_notes(machine: Machine, model: ModelShape, candidate: Candidate | None) -> list[str]:
    """Notes on the machine's figures, and on the model at the chosen length."""
    notes = list(machine.notes)
    if candidate is None:
        return notes
    tokens = candidate.tier.tokens
    if tokens > model.max_position_embeddings:
        notes.append(
            f"{model.display_name} was trained for {model.max_position_embeddings} positions and "
            f"this tier has {tokens}: expect a high loss at first, or scale its rotary embedding"
        )
    return notes
