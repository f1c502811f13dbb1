"""What `python -m bench.speed` refuses, leaves out and counts, with workers that only pretend."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import speed, speed_report, speed_worker
from bench.machine import describe_machine
from bench.speed_worker import STOCK, STREAMING, TILED, Timed, Weighed
from elite.planner.v1 import planner_pb2
from services.common.errors import ServiceError
from services.planner.machine import ComputeDtype, DeviceKind
from services.planner.models import catalogue
from tests.support.machines import measured_profile

_FREE_BYTES = 2**34
_STATIC_BYTES, _BYTES_PER_TOKEN = 1_000, 1_000_000


class Pretender:
    """Answers like a worker: a constant loss, steps of the seconds it is given in turn."""

    def __init__(self, name: str, asked: list[tuple[str, str]], **answers: Any) -> None:
        self._name, self._asked = name, asked
        self._weighed_loss: float = answers.get("weighed_loss", 2.0)
        self._timed_loss: float = answers.get("timed_loss", 2.0)
        self._seconds: Sequence[float] = answers.get("seconds", (1.0,))
        self._peak_share: float = answers.get("peak_share", 1.0)
        self.steps = 0
        self.closed = False

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._asked.append((self._name, function.__name__))
        if function is speed_worker.device_facts:
            return "cpu", _FREE_BYTES
        if function is speed_worker.weigh:
            plan: planner_pb2.Plan = arguments[1]
            tokens = plan.context_tokens + plan.target_tokens
            grown = int(self._peak_share * tokens * _BYTES_PER_TOKEN)
            return Weighed(self._weighed_loss, _STATIC_BYTES, _STATIC_BYTES + grown)
        if function is speed_worker.time_step:
            self.steps += 1
            seconds = self._seconds[(self.steps - 1) % len(self._seconds)]
            return Timed(self._timed_loss, seconds, 1.0)
        return None

    def close(self) -> None:
        self.closed = True


def pretend(
    monkeypatch: pytest.MonkeyPatch, **streaming: Any
) -> tuple[dict[str, Pretender], list[tuple[str, str]]]:
    asked: list[tuple[str, str]] = []
    workers = {
        STOCK: Pretender(STOCK, asked, seconds=(1.0, 2.0, 4.0)),
        STREAMING: Pretender(STREAMING, asked, **streaming),
    }
    monkeypatch.setattr(speed, "make_workers", lambda: workers)
    monkeypatch.setattr(speed, "measured_profile", lambda **_: measured_profile())
    return workers, asked


@pytest.mark.parametrize("which", ["weighed_loss", "timed_loss"])
@pytest.mark.parametrize("loss", [2.001, float("nan")])
def test_losses_that_differ_are_refused_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, which: str, loss: float
) -> None:
    workers, _ = pretend(monkeypatch, **{which: loss})
    output = tmp_path / "speed.json"
    with pytest.raises(SystemExit, match=f"nothing is written: llama-2x64 .* {loss} by streaming"):
        speed.main(["--fast", "--output", str(output)])
    assert not output.exists()
    assert all(worker.closed for worker in workers.values())


def test_16_bit_losses_may_differ_by_their_rounding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, weighed_loss=2.001)
    output = tmp_path / "speed.json"
    speed.main(["--fast", "--dtype", "bfloat16", "--output", str(output)])
    assert output.exists()


def test_ratios_are_those_of_rounds_and_the_order_alternates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, asked = pretend(monkeypatch, seconds=(0.5, 4.0, 2.0), peak_share=0.25)
    output = tmp_path / "speed.json"
    speed.main(["--fast", "--tokens", "64", "--output", str(output)])
    document = json.loads(output.read_text())
    (ratio,) = document["ratios"]
    assert (ratio["time_lowest"], ratio["time"], ratio["time_highest"]) == (0.5, 0.5, 2.0)
    assert ratio["memory"] == pytest.approx(0.25, rel=1e-3)
    stock, streaming = document["cases"]
    assert (stock["step_seconds"], streaming["step_seconds"]) == (2.0, 2.0)
    assert stock["spread"] == pytest.approx(1.5)
    order = [name for name, what in asked if what == "time_step"]
    assert order == [STOCK, STREAMING, STREAMING, STOCK, STOCK, STREAMING]


def test_lengths_are_added_to_those_measured_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = tmp_path / "speed.json"
    for given, expected in (("128", [128]), ("64", [64, 128]), ("128", [64, 128])):
        pretend(monkeypatch)
        add = ["--add"] if output.exists() else []
        speed.main(["--fast", "--tokens", given, *add, "--output", str(output)])
        document = json.loads(output.read_text())
        assert [row["tokens"] for row in document["ratios"]] == expected
        measured = [(row["tokens"], row["executor"]) for row in document["cases"]]
        assert measured == [(n, one) for n in expected for one in (STOCK, STREAMING)]


@pytest.mark.parametrize("what", ["no file", "another machine"])
def test_nothing_is_added_to_figures_of_another_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    _, asked = pretend(monkeypatch)
    output = tmp_path / "speed.json"
    if what == "another machine":
        output.write_text(json.dumps({"machine": describe_machine() | {"torch": "1.0"}}))
    with pytest.raises(SystemExit, match=r"run without it|with torch 1\.0, here it is"):
        speed.main(["--fast", "--add", "--output", str(output)])
    assert not asked


def test_what_does_not_fit_or_is_too_late_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch)
    output = tmp_path / "speed.json"
    arguments = ["--model", "llama-2x64", "--output", str(output)]
    speed.main([*arguments, "--tokens", "32768,128"])
    document = json.loads(output.read_text())
    assert [case["tokens"] for case in document["cases"]] == [128, 128]
    (left,) = document["left_out"]
    assert (left["model"], left["tokens"]) == ("llama-2x64", 32768)
    assert "32.8 GB" in left["reason"]
    assert "left out: llama-2x64 at 32,768 tokens, a step takes some" in capsys.readouterr().out
    speed.main([*arguments, "--tokens", "64,128", "--budget-seconds", "0"])
    document = json.loads(output.read_text())
    assert document["cases"] == []
    assert [left["tokens"] for left in document["left_out"]] == [64, 128]


def test_an_unknown_model_is_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    with pytest.raises(SystemExit, match="did you mean smollm2-135m"):
        speed.main(["--model", "smollm-135m"])


def test_goals_are_told_where_they_were_measured() -> None:
    at = {"model": "m", "dtype": "float32", "over": STOCK}
    found = speed_report.goals([
        {**at, "tokens": 2048, "time": 9.0, "memory": 9.0},
        {**at, "tokens": 4096, "time": 0.9, "memory": 9.0},
        {**at, "tokens": 16384, "time": 0.66, "memory": 0.4},
        {**at, "over": TILED, "tokens": 16384, "time": 0.5, "memory": 0.3},
    ])  # fmt: skip
    assert [(goal["name"], goal["at_most"], goal["measured"], goal["met"]) for goal in found] == [
        ("time over stock's at 4,096 tokens, m, float32", 0.9, 0.9, True),
        ("time over stock's at 16,384 tokens, m, float32", 0.65, 0.66, False),
        ("memory over stock's at 16,384 tokens, m, float32", 0.4, 0.4, True),
    ]


def test_a_third_contender_has_a_ratio_of_its_own_and_must_agree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workers, asked = pretend(monkeypatch, seconds=(1.0,), peak_share=0.25)
    tiled = Pretender(TILED, asked, seconds=(2.0, 4.0, 4.0), peak_share=0.5)
    workers = {STOCK: workers[STOCK], TILED: tiled, STREAMING: workers[STREAMING]}
    # Whether or not it is installed here.
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{name} 1")
    monkeypatch.setattr(speed, "make_workers", lambda: workers)
    output = tmp_path / "speed.json"
    speed.main(["--fast", "--tokens", "64", "--output", str(output)])
    document = json.loads(output.read_text())
    assert [case["executor"] for case in document["cases"]] == [STOCK, TILED, STREAMING]
    ratios = {row["over"]: (row["time"], round(row["memory"], 2)) for row in document["ratios"]}
    assert ratios == {STOCK: (0.5, 0.25), TILED: (0.25, 0.5)}
    workers[TILED] = Pretender(TILED, asked, timed_loss=3.0)
    with pytest.raises(SystemExit, match=r"3\.0 by DeepSpeed tiles"):
        speed.main(["--fast", "--tokens", "64", "--output", str(output)])


def test_models_are_shapes_or_of_the_catalogue_with_fewer_layers() -> None:
    subject = speed.Subject.of("qwen2.5-0.5b:2")
    assert (subject.name, subject.layers, subject.shape.layer_count) == ("qwen2.5-0.5b", 2, 2)
    assert subject.shape.hidden_size == catalogue()["qwen2.5-0.5b"].hidden_size
    assert speed.Subject.of("llama-8x256").shape.layer_count == 8
    assert speed.Subject.of("qwen2.5-0.5b").key != subject.key
    with pytest.raises(ServiceError, match="did you mean"):
        speed.Subject.of("qwen2.5-0.6b")


@pytest.mark.parametrize(("asked", "expected"), [(0, 1024), (2048, 2048), (8192, 4096)])
def test_the_chunk_is_the_planners_or_the_one_asked_for(asked: int, expected: int) -> None:
    setting = speed.Setting(ComputeDtype.FLOAT32, DeviceKind.CPU, _FREE_BYTES, 1, asked)
    plan = speed.plan_for(speed.Subject.of("llama-8x256"), 4096, setting)
    assert plan.execution.streaming.chunk_tokens == expected
    assert plan.context_tokens + plan.target_tokens == 4096
    assert plan.execution.executor == planner_pb2.EXECUTOR_STREAMING
    assert plan.execution.checkpoint_policy == planner_pb2.CHECKPOINT_POLICY_SELECTIVE


@pytest.mark.parametrize(
    "wrong", [["--tokens", "3"], ["--tokens", "a"], ["--rounds", "0"], ["--chunk", "-1"]]
)
def test_arguments_that_make_no_sense_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        speed.main(wrong)
