"""The examples do what their first lines say, against a real planner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"
TOOLS = Path(sys.executable).parent
MODEL_AND_CARD = ("qwen2.5-1.5b", "rtx-3090")


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """With what the environment of this project has on the path."""
    path = f"{TOOLS}:{os.environ['PATH']}"
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT,
        env=os.environ | {"PATH": path} | variables,
    )  # fmt: skip


def test_python_and_grpcurl_get_the_same_plan(planner: str) -> None:
    by_python = run(sys.executable, EXAMPLES / "plan.py", planner, *MODEL_AND_CARD)
    assert by_python.returncode == 0, by_python.stderr
    by_grpcurl = run(EXAMPLES / "plan.sh", planner, *MODEL_AND_CARD)
    assert by_grpcurl.returncode == 0, by_grpcurl.stderr
    chosen = json.loads(by_grpcurl.stdout)["chosen"]
    said = f"tier {chosen['tier']}: {chosen['context_tokens']} + {chosen['target_tokens']} tokens"
    assert by_python.stdout.splitlines()[0] == said


def test_an_unknown_card_is_refused_in_words(planner: str) -> None:
    done = run(EXAMPLES / "plan.sh", planner, "qwen2.5-1.5b", "abacus")
    assert done.returncode != 0
    assert "machine.hypothetical.gpu_id" in done.stderr


def test_a_ladder_of_ones_own() -> None:
    ladder = str(EXAMPLES / "custom_ladder.yaml")
    done = run(TOOLS / "elite", "tiers", ELITE_PLANNER_LADDER_FILE=ladder)
    assert done.returncode == 0, done.stderr
    assert "12*" in done.stdout
    assert "8,388,608" in done.stdout
