"""The phases of a step add up to it."""

from __future__ import annotations

import pytest

from bench import profile
from bench.speed import Subject
from services.trainer.engine.attention import register_attention
from services.trainer.engine.executors.streaming import StreamingExecutor


def test_every_second_of_a_step_is_in_one_phase_and_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in profile.PHASES:  # put back afterwards
        monkeypatch.setattr(StreamingExecutor, method, getattr(StreamingExecutor, method))
    register_attention()
    profile.name_phases()
    case = profile.profile_step(Subject.of("llama-2x64"), 128, 1)
    phases = case["phases"]
    assert list(phases) == ["forward", "last layer", "backward"]
    assert case["seconds"] == pytest.approx(sum(sum(kinds.values()) for kinds in phases.values()))
    assert all(seconds >= 0 for kinds in phases.values() for seconds in kinds.values())
    for found in phases.values():
        assert found["attention"] > 0
        assert found["matrix products"] > 0
        assert found["element-wise and others"] > 0
