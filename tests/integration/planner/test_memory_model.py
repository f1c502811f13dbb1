"""Predicted device memory against the engine's own step: real on a small model, fake at real size.

`python -m bench.memory` runs the whole matrix.
"""

from __future__ import annotations

import pytest

MODELS = [
    "smollm2-135m", "qwen2.5-1.5b", "qwen3-0.6b", "phi-2", "gemma-2b", "olmo-2-1b",
    "stablelm-2-1.6b", "pythia-410m", "llama-3.2-1b",
]  # fmt: skip


@pytest.mark.parametrize("set_name", ["bfloat16", "float32", "bfloat16 without checkpointing"])
@pytest.mark.parametrize("model_id", MODELS)
def test_a_step_of_the_engine_takes_what_was_predicted(model_id: str, set_name: str) -> None:
    from bench.memory import run_case
    from services.planner.ladder import load_ladder
    from services.planner.models import model_by_id

    case = run_case(model_by_id(model_id), load_ladder()[0], set_name)
    assert -0.002 <= case.error <= 0.01, f"predicted {case.error:+.2%}"
