"""Section `overlap`: which share of a step's copies runs while kernels run.

One streaming step of a few layers with every store in host memory, under torch's profiler. A copy
is one between host and device; copies within the device count as kernels. By phase of the step:
seconds of kernels, of copies each way, and of neither.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from bench import gpu_device, speed
from bench.gpu_intervals import Interval, length, shared, union, within
from bench.gpu_models import StageClock, StreamingOnDevice, random_window
from bench.gpu_plans import fast_machine, plan_message, streaming_set
from bench.gpu_settings import NO_CUDA, Settings
from bench.speed_steps import free_bytes
from elite.planner.v1 import planner_pb2
from services.planner.evaluation import Evaluation
from services.planner.ladder import Tier
from services.planner.memory import Sizing
from services.planner.options import Place
from services.trainer.engine.executors import make_executor
from services.trainer.engine.streaming.workspace import Workspace

_LAYERS = {False: 6, True: 2}
_TIER = {False: Tier(1, 61440, 4096, 8), True: Tier(1, 96, 32, 4)}
_CHUNK_TOKENS = {False: 8192, True: 32}
PHASES = ("forward", "last_layer", "backward")
_MARK = "bench-phase: "
_TO_DEVICE, _TO_HOST = "Memcpy HtoD", "Memcpy DtoH"
_MICROSECOND = 1e-6


def measure(settings: Settings, number: int) -> dict[str, Any]:
    """Shares and seconds; null on a CPU, where nothing runs beside anything."""
    del number
    device = gpu_device.open_device()
    subject = speed.Subject.of(settings.subject_name(_LAYERS[settings.fast]))
    plan = _plan(subject, device, settings)
    model = StreamingOnDevice(subject.config, plan, device).model
    executor, window_bs = make_executor(model, plan), random_window(plan)
    clock = PhaseClock(device, subject.layers)
    executor.step(window_bs, 1.0)  # makes kernels and buffers
    started = time.perf_counter()
    executor.step(window_bs, 1.0)
    step_seconds = time.perf_counter() - started
    found: dict[str, Any] = {
        "model": subject.name, "layers": subject.layers, "tokens": window_bs.shape[1],
        "chunk_tokens": int(plan.execution.streaming.chunk_tokens),
        "attention_kernel": plan.execution.attention_kernel,
        "step_seconds": step_seconds,
    }  # fmt: skip
    if device.type != "cuda":
        executor.step(window_bs, 1.0, clock)
        reason = dict.fromkeys(("overlap", "phases"), NO_CUDA)
        return found | dict.fromkeys(reason) | {"not_measured": reason}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        executor.step(window_bs, 1.0, clock)
    return found | summary(*_timeline(recorded)) | {"not_measured": {}}


def _plan(subject: speed.Subject, device: torch.device, settings: Settings) -> planner_pb2.Plan:
    """All stores on the host; on a CPU, where that is the device, on the device."""
    place = Place.HOST if device.type == "cuda" else Place.DEVICE
    fast, kernel = settings.fast, gpu_device.kernel_for(device, settings)
    machine = fast_machine(device.type, free_bytes(device), kernel)
    shape = replace(subject.shape, layer_count=subject.layers)
    chosen, sizing = streaming_set(shape, machine, place), Sizing(chunk_tokens=_CHUNK_TOKENS[fast])
    return plan_message(shape, machine, Evaluation(shape, machine).one(_TIER[fast], chosen, sizing))


class PhaseClock(StageClock):
    """Marks the phases of a step in the profile; waits for the device only between them."""

    def __init__(self, device: torch.device, layers: int) -> None:
        super().__init__(device)
        self._layers = layers
        self._mark: Any = None

    def resume(self, workspace: Workspace) -> tuple[int, float]:
        """Forward begins."""
        done = super().resume(workspace)
        self._begin(PHASES[0])
        return done

    def boundary(self, workspace: Workspace, stages: tuple[int, int], loss: torch.Tensor) -> None:
        """Marks the end of a phase."""
        done, count = stages
        last_stages = {self._layers - 1: PHASES[1], self._layers: PHASES[2], count: ""}
        if done in last_stages:
            super().boundary(workspace, stages, loss)
            self._mark.__exit__(None, None, None)
            if last_stages[done]:
                self._begin(last_stages[done])

    def _begin(self, phase: str) -> None:
        self._mark = record_function(_MARK + phase)
        self._mark.__enter__()


def _timeline(recorded: Any) -> tuple[dict[str, Interval], dict[str, list[Interval]]]:
    """When the phases were, and what the device did when, in seconds."""
    phases: dict[str, Interval] = {}
    work: dict[str, list[Interval]] = {"kernels": [], "to_device": [], "to_host": []}
    for event in recorded.events():
        span = (event.time_range.start * _MICROSECOND, event.time_range.end * _MICROSECOND)
        on_device = event.device_type == DeviceType.CUDA
        if event.name.startswith(_MARK):
            if not on_device:
                phases[event.name.removeprefix(_MARK)] = span
        elif on_device:
            work[_kind(event.name)].append(span)
    return phases, work


def _kind(name: str) -> str:
    if name.startswith(_TO_DEVICE):
        return "to_device"
    return "to_host" if name.startswith(_TO_HOST) else "kernels"


def summary(
    phases: Mapping[str, Interval], work: Mapping[str, Iterable[Interval]]
) -> dict[str, Any]:
    """Overlap of the copies with kernels over the whole step, and seconds by phase.

    overlap: null where nothing was copied. idle: neither kernel nor copy.
    """
    merged = {kind: union(spans) for kind, spans in work.items()}
    by_phase = {}
    for phase, (begin, end) in phases.items():
        inside = {kind: union(within(spans, begin, end)) for kind, spans in merged.items()}
        busy = union(span for spans in inside.values() for span in spans)
        by_phase[phase] = {f"{kind}_seconds": length(spans) for kind, spans in inside.items()} | {
            "idle_seconds": end - begin - length(busy), "seconds": end - begin,
        }  # fmt: skip
    copies = {kind: spans for kind, spans in merged.items() if kind != "kernels"}
    copies["both"] = union(span for spans in copies.values() for span in spans)
    kernels = merged["kernels"]
    overlap = {
        kind: shared(spans, kernels) / length(spans) if spans else None
        for kind, spans in copies.items()
    }
    return {"overlap": overlap, "phases": by_phase}
