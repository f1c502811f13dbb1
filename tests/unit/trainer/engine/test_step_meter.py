"""Where a step's time goes, and what it moves."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from services.trainer.engine import step_meter
from services.trainer.engine.executors import Executor
from services.trainer.engine.executors.resident import ResidentExecutor
from services.trainer.engine.executors.streaming import StreamingExecutor
from services.trainer.engine.step_meter import (
    BACKWARD,
    FORWARD,
    LOSS,
    OPTIMIZER,
    PhaseClock,
    StepMeter,
)
from services.trainer.engine.streaming.settings import StreamingSettings
from services.trainer.engine.streaming.stores import Place
from services.trainer.engine.streaming.weights import stream_weights
from services.trainer.engine.transfers import Moved
from tests.fixtures.adapted import a_window, adapted_model
from tests.fixtures.engine import LLAMA_LINEARS, a_plan, tiny_config

TOKENS, TARGETS, CHUNKS, LAYERS = 66, 16, 7, 5
CPU = torch.device("cpu")


class Clockwork:
    """Time goes on by one second with every look at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(step_meter.time, "perf_counter", self)

    def __call__(self) -> float:
        self.seconds += 1.0
        return self.seconds


def test_spans_of_a_phase_add_up_until_they_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    Clockwork(monkeypatch)
    clock = PhaseClock()
    for phase in (FORWARD, LOSS, FORWARD):
        with clock.timed(phase):
            pass
    clock.settle()
    with clock.timed(FORWARD):
        pass
    assert clock.take() == {FORWARD: 3.0, LOSS: 1.0}
    assert clock.take() == {}


def test_a_phase_within_another_is_taken_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Clockwork(monkeypatch)
    clock = PhaseClock()
    with clock.timed(BACKWARD), clock.timed(LOSS):
        pass
    assert clock.take() == {BACKWARD: 2.0, LOSS: 1.0}


def test_a_phase_that_failed_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    Clockwork(monkeypatch)
    clock = PhaseClock()

    def fail() -> None:
        with clock.timed(BACKWARD):
            raise ValueError("ended")

    with pytest.raises(ValueError, match="ended"):
        fail()
    with clock.timed(LOSS):
        pass
    assert clock.take() == {BACKWARD: 1.0, LOSS: 1.0}


def test_a_clock_that_nobody_reads_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_meter, "_MOST_OPEN_SPANS", 3)
    Clockwork(monkeypatch)
    clock = PhaseClock()
    for _ in range(10):
        with clock.timed(FORWARD):
            pass
    assert len(clock._open) == 3
    assert clock.take() == {FORWARD: 10.0}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_the_device_that_is_timed() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    matrix = torch.randn(4096, 4096, device=device)
    torch.cuda.synchronize(device)
    clock, started = PhaseClock(device), time.perf_counter()
    with clock.timed(FORWARD):
        for _ in range(50):
            matrix = torch.nn.functional.normalize(matrix @ matrix)
    asked_seconds = time.perf_counter() - started
    seconds = clock.take()[FORWARD]
    assert asked_seconds < seconds <= time.perf_counter() - started


def streaming(meter: StepMeter, folder: Path | None = None, **places: Place) -> StreamingExecutor:
    model, _ = adapted_model("llama", num_hidden_layers=LAYERS)
    settings = StreamingSettings(TOKENS, TARGETS, 10, 5, page_folder=folder, **places)
    return StreamingExecutor(model, settings, meter)


def resident(meter: StepMeter) -> ResidentExecutor:
    model, _ = adapted_model("llama", num_hidden_layers=2)
    plan = a_plan(tiny_config(), LLAMA_LINEARS)
    plan.target_tokens, plan.execution.attention_kernel = TARGETS, ""
    return ResidentExecutor(model, plan, meter)


@pytest.mark.parametrize("make", [resident, streaming])
def test_a_window_divides_into_phases(make) -> None:
    meter = StepMeter(CPU)
    executor: Executor = make(meter)
    meter.phases.take()
    started = time.perf_counter()
    for _ in range(2):
        executor.step(a_window(TOKENS), 1.0)
    seconds = time.perf_counter() - started
    phases = meter.phases.take()
    assert set(phases) == {FORWARD, LOSS, BACKWARD}
    assert all(phases.values())
    assert seconds / 2 < sum(phases.values()) <= seconds
    executor.evaluate(a_window(TOKENS))
    assert meter.phases.take() == {}
    assert OPTIMIZER not in phases


def test_a_streamed_step_moves_what_the_stores_and_the_weights_do(tmp_path: Path) -> None:
    model, _ = adapted_model("llama", num_hidden_layers=LAYERS)
    hidden_size = model.config.hidden_size
    weights = stream_weights(model, CPU)
    settings = StreamingSettings(
        TOKENS, TARGETS, 10, 5, layer_inputs=Place.DISK, hidden_gradients=Place.HOST,
        page_folder=tmp_path,
    )  # fmt: skip
    meter = StepMeter(CPU)
    executor = StreamingExecutor(model, settings, meter)
    meter.count(weights)
    executor.step(a_window(TOKENS), 1.0)
    before, weights_before = meter.moved, weights.moved
    executor.step(a_window(TOKENS), 1.0)
    moved = meter.moved - before
    page_bytes = 10 * hidden_size * 4
    # Hidden states: written by every layer but the last in forward, their gradients by every layer
    # but the first in backward. Inputs: of the layers between those two.
    assert moved.device_to_host_bytes == page_bytes * 2 * (LAYERS - 1) * CHUNKS
    assert moved.disk_written_bytes == (LAYERS - 2) * CHUNKS * 4096
    assert moved.disk_read_bytes >= moved.disk_written_bytes
    fetched = (weights.moved - weights_before).host_to_device_bytes
    assert fetched == 2 * (LAYERS - 2) * weights._layers[0].size_bytes
    assert moved.host_to_device_bytes > fetched


def test_on_the_device_nothing_moves() -> None:
    meter = StepMeter(CPU)
    streaming(meter).step(a_window(TOKENS), 1.0)
    assert meter.moved == Moved()
