"""What a caller should know beside the figures."""

from __future__ import annotations

from services.planner.evaluation import Candidate
from services.planner.machine import Machine
from services.planner.models import ModelShape

# Shorter steps are saved when they end: checkpoint_every_seconds of trainer.proto.
_SAVED_STEP_SECONDS = 600


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
    journal_bytes, seconds = candidate.memory.journal_bytes, candidate.cost.seconds
    if journal_bytes and seconds >= _SAVED_STEP_SECONDS:
        notes.append(
            f"a step takes {_roughly(seconds)}: it is saved in the middle, in up to "
            f"{journal_bytes / 2**30:.1f} GiB of disk beside the plan's; without them it is not"
        )
    return notes


def _roughly(seconds: float) -> str:
    """In the largest unit of which there are two."""
    for unit, length in (("days", 86_400.0), ("hours", 3600.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"
