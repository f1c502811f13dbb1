"""The planner runs without torch: in a fresh process, imported and used."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import services.planner.servicer
from services.planner.ladder import load_ladder
from services.planner.machine import hypothetical_machine
from services.planner.models import model_by_id
from services.planner.budgets import Constraints
from services.planner.search import plan

result = plan(load_ladder(), model_by_id("qwen2.5-1.5b"),
              hypothetical_machine("rtx-3090", 64 * 2**30, 0), Constraints())
assert result.chosen is not None
heavy = {"torch", "transformers", "peft", "bitsandbytes"} & set(sys.modules)
assert not heavy, heavy
"""


def test_planning_loads_no_torch() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
