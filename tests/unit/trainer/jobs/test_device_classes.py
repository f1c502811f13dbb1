"""Which workers a plan goes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from elite.planner.v1 import planner_pb2
from elite.profiler.v1 import profiler_pb2
from services.trainer.jobs.device_classes import device_class_of, device_classes_here
from services.trainer.worker.settings import TrainerWorkerSettings


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        (profiler_pb2.DEVICE_KIND_CPU, "AMD EPYC", "cpu"),
        (profiler_pb2.DEVICE_KIND_CUDA, "NVIDIA GeForce RTX 3090", "nvidia-geforce-rtx-3090"),
        (profiler_pb2.DEVICE_KIND_CUDA, "NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm4-80gb"),
        (profiler_pb2.DEVICE_KIND_CUDA, "", "gpu"),
    ],
)
def test_the_class_of_a_plan(kind: profiler_pb2.DeviceKind, name: str, expected: str) -> None:
    plan = planner_pb2.Plan(device_kind=kind, planned_on=planner_pb2.PlannedOn(device_name=name))
    assert device_class_of(plan) == expected


def test_the_driver_names_the_cards(tmp_path: Path) -> None:
    assert device_classes_here(tmp_path / "none") == ("cpu",)
    for number, model in enumerate(["NVIDIA H200", "NVIDIA H200", "NVIDIA L4"]):
        folder = tmp_path / f"0000:0{number}:00.0"
        folder.mkdir()
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   17\n")
    assert device_classes_here(tmp_path) == ("nvidia-h200", "nvidia-l4", "cpu")


@pytest.mark.parametrize("wrong", ["", "CPU", "nvidia h200,,"])
def test_a_setting_that_names_no_class_is_refused(
    monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("ELITE_TRAINER_WORKER_DEVICE_CLASSES", wrong)
    with pytest.raises(ValueError, match="name device classes like"):
        TrainerWorkerSettings()


def test_classes_are_given_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELITE_TRAINER_WORKER_DEVICE_CLASSES", "nvidia-h200, cpu")
    assert TrainerWorkerSettings().device_classes == ("nvidia-h200", "cpu")
