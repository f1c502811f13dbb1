"""Wherever a step keeps what it keeps, and whatever it makes again: the same loss and gradients."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from services.trainer.engine.executors.streaming import StreamingExecutor
from services.trainer.engine.failures import EngineError
from services.trainer.engine.step_meter import StepMeter
from services.trainer.engine.streaming import layer_attention
from services.trainer.engine.streaming.codecs import EXACT, Codec, Int8, Nf4
from services.trainer.engine.streaming.settings import StreamingSettings
from services.trainer.engine.streaming.stores import Place
from tests.fixtures.adapted import (
    a_window,
    adapted_model,
    gradients_of,
    relative_errors,
    stock_gradients,
)
from tests.fixtures.page_files import open_page_files

TOKENS, TARGETS = 66, 16
TOLERANCE = 1e-5
# Five layers: kept inputs of every second or third leave a short last segment.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 5},
    "qwen3": {"num_hidden_layers": 3},
    "mistral": {"num_hidden_layers": 2, "sliding_window": 23},
}


pytestmark = pytest.mark.usefixtures("one_thread")


def streamed(
    family: str, page_folder: Path, steps: int = 1, **changes: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the last of some steps."""
    model, parameters = adapted_model(family, **MODELS[family])
    defaults: dict[str, Any] = {"chunk_tokens": 10, "loss_tile_rows": 5}
    executor = StreamingExecutor(
        model,
        StreamingSettings(TOKENS, TARGETS, page_folder=page_folder, **{**defaults, **changes}),
    )
    for _ in range(steps):
        for parameter in parameters.values():
            parameter.grad = None
        loss = executor.step(a_window(TOKENS), 1.0)
    return loss, gradients_of(parameters)


@functools.cache
def stock(family: str) -> tuple[float, dict[str, torch.Tensor]]:
    return stock_gradients(family, a_window(TOKENS), TARGETS, **MODELS[family])


def assert_exact(family: str, found: tuple[float, dict[str, torch.Tensor]]) -> None:
    expected_loss, expected = stock(family)
    assert found[0] == pytest.approx(expected_loss, rel=TOLERANCE)
    for parameter, error in relative_errors(found[1], expected).items():
        assert error <= TOLERANCE, parameter


@pytest.mark.parametrize(
    ("place", "chunk_tokens"),
    [(Place.DEVICE, 1), (Place.DEVICE, 66), (Place.HOST, 10), (Place.HOST, 64), (Place.DISK, 10),
     (Place.DISK, 66)],
)  # fmt: skip
def test_everything_anywhere(place: Place, chunk_tokens: int, tmp_path: Path) -> None:
    for selective in (False, True):
        found = streamed(
            "llama", tmp_path, chunk_tokens=chunk_tokens, layer_inputs=place,
            hidden_gradients=place, key_values=place,
            attention_outputs=place if selective else None,
            kept_keys=None if selective else place,
        )  # fmt: skip
        assert_exact("llama", found)


@pytest.mark.parametrize("interval", [2, 3, 5, 9])
@pytest.mark.parametrize("kept", [None, Place.DEVICE, Place.HOST])
def test_inputs_of_every_few_layers(interval: int, kept: Place | None, tmp_path: Path) -> None:
    for place in Place:
        found = streamed(
            "llama", tmp_path, steps=2, layer_inputs=place, layer_input_interval=interval,
            attention_outputs=kept, hidden_gradients=Place.HOST,
        )  # fmt: skip
        assert_exact("llama", found)


def test_inputs_that_were_made_again_are_of_one_window() -> None:
    """One segment for all layers: where one window's backward ends, the next one's begins."""
    window = a_window(TOKENS).flip(1)
    _, expected = stock_gradients("llama", window, TARGETS, **MODELS["llama"])
    model, parameters = adapted_model("llama", **MODELS["llama"])
    settings = StreamingSettings(TOKENS, TARGETS, 10, 5, layer_input_interval=4)
    executor = StreamingExecutor(model, settings)
    executor.step(a_window(TOKENS), 1.0)
    for parameter in parameters.values():
        parameter.grad = None
    executor.step(window, 1.0)
    assert max(relative_errors(gradients_of(parameters), expected).values()) <= TOLERANCE


@pytest.mark.parametrize("place", Place)
def test_kept_keys_of_every_layer_and_chunk(place: Place, tmp_path: Path) -> None:
    """Also of chunks whose output nothing needs, after other layers' keys took their place."""
    found = streamed("llama", tmp_path, layer_input_interval=3, kept_keys=place)
    assert_exact("llama", found)


@pytest.mark.parametrize("modules", [(), ("gate_proj", "down_proj"), ("v_proj",), ("q_proj",)])
def test_the_only_layer_is_first_and_last(modules: tuple[str, ...]) -> None:
    """Of its chunks without targets only adapters on keys and values have a gradient."""
    one = {"num_hidden_layers": 1, "modules": modules}
    expected_loss, expected = stock_gradients("llama", a_window(TOKENS), TARGETS, **one)
    model, parameters = adapted_model("llama", **one)
    settings = StreamingSettings(TOKENS, TARGETS, 10, 5, attention_outputs=Place.DEVICE)
    loss = StreamingExecutor(model, settings).step(a_window(TOKENS), 1.0)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    errors = relative_errors(gradients_of(parameters), expected)
    assert max(errors.values()) <= TOLERANCE


def test_a_loss_without_gradients_has_the_same_bits() -> None:
    model, _ = adapted_model("llama", **MODELS["llama"])
    executor = StreamingExecutor(model, StreamingSettings(TOKENS, 50, 10, 5))
    assert executor.evaluate(a_window(TOKENS)) == executor.step(a_window(TOKENS), 1.0)


@pytest.mark.parametrize("place", [Place.HOST, Place.DISK])
@pytest.mark.parametrize("family", ["qwen3", "mistral"])
@pytest.mark.parametrize("chunk_tokens", [10, 30])
def test_keys_in_pages(family: str, place: Place, chunk_tokens: int, tmp_path: Path) -> None:
    found = streamed(family, tmp_path, steps=2, chunk_tokens=chunk_tokens, key_values=place)
    assert_exact(family, found)


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("place", [Place.DEVICE, Place.HOST])
def test_blocks_of_several_chunks_of_keys(
    family: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; pages cut them at their own length."""
    lengths: list[int] = []
    cut = layer_attention.causal_blocks

    def noted(begin: int, end: int, window: int | None, longest: int) -> Iterator[Any]:
        lengths.append(longest)
        return cut(begin, end, window, longest)

    monkeypatch.setattr(layer_attention, "KEY_CHUNKS", {"cpu": 4})
    monkeypatch.setattr(layer_attention, "causal_blocks", noted)
    assert_exact(family, streamed(family, tmp_path, chunk_tokens=10, key_values=place))
    assert min(lengths) == (40 if place is Place.DEVICE else 10)


@pytest.mark.parametrize(("codec", "worst"), [(EXACT, 1e-5), (Int8(), 0.05), (Nf4(), 0.5)])
def test_codecs_change_gradients_and_not_the_loss(
    codec: Codec, worst: float, tmp_path: Path
) -> None:
    for place in Place:
        loss, gradients = streamed("llama", tmp_path, layer_inputs=place, layer_input_codec=codec)
        expected_loss, expected = stock("llama")
        assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
        errors = relative_errors(gradients, expected)
        assert max(errors.values()) <= worst
        assert codec is EXACT or max(errors.values()) > TOLERANCE


def test_nothing_is_left_on_the_disk_and_what_was_written_is_counted(tmp_path: Path) -> None:
    model, _ = adapted_model("llama", **MODELS["llama"])
    settings = StreamingSettings(
        TOKENS, TARGETS, 10, 5, layer_inputs=Place.DISK, page_folder=tmp_path
    )
    meter = StepMeter(torch.device("cpu"))
    executor = StreamingExecutor(model, settings, meter)
    assert meter.moved.disk_written_bytes == 0
    executor.step(a_window(TOKENS), 1.0)
    # Inputs of three layers in seven chunks, each a block of the disk.
    assert meter.moved.disk_written_bytes == 3 * 7 * 4096
    assert list(tmp_path.iterdir()) == []


def test_an_executor_that_is_closed_leaves_no_page_file(tmp_path: Path) -> None:
    model, _ = adapted_model("llama", **MODELS["llama"])
    places = dict.fromkeys(
        ["layer_inputs", "hidden_gradients", "key_values", "attention_outputs", "kept_keys"],
        Place.DISK,
    )
    settings = StreamingSettings(TOKENS, TARGETS, 10, 5, page_folder=tmp_path, **places)
    executor = StreamingExecutor(model, settings)
    executor.step(a_window(TOKENS), 1.0)
    # Key-value gradients are in a file of their own.
    assert len(open_page_files(tmp_path)) == len(places) + 1
    executor.close()
    assert open_page_files(tmp_path) == []


def test_a_disk_without_room_is_refused_before_the_step(tmp_path: Path, monkeypatch) -> None:
    class Full:
        f_bavail, f_frsize = 3, 4096

    monkeypatch.setattr("os.statvfs", lambda _: Full)
    with pytest.raises(EngineError, match=r"12,288 free bytes; the plan's page files need 86,016"):
        streamed("llama", tmp_path, layer_inputs=Place.DISK)


def test_a_page_that_changed_on_the_disk_is_detected(tmp_path: Path, monkeypatch) -> None:
    import os

    write = os.pwritev

    def flip(descriptor: int, buffers: list[Any], offset: int) -> int:
        damaged = bytearray(buffers[0])
        if offset == 5 * 4096:
            damaged[17] ^= 1
        return write(descriptor, [damaged], offset)

    monkeypatch.setattr("os.pwritev", flip)
    # Memory of its own need not lie as direct I/O wants it.
    monkeypatch.setattr("os.O_DIRECT", 0)
    with pytest.raises(EngineError, match="page 5 of a page file is not what was written"):
        streamed("llama", tmp_path, layer_inputs=Place.DISK)


def test_a_disk_that_fills_up_in_mid_step_is_said(tmp_path: Path, monkeypatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwritev", full)
    with pytest.raises(OSError, match="No space left"):
        streamed("llama", tmp_path, layer_inputs=Place.DISK)
