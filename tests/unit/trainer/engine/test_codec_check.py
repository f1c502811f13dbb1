"""A lossy codec is measured on the run's own tokens, and refused when gradients point elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from services.trainer.engine.executors.streaming import StreamingExecutor
from services.trainer.engine.failures import BAD_MODEL, EngineError
from services.trainer.engine.streaming import codec_check
from services.trainer.engine.streaming.codec_check import check_codec
from services.trainer.engine.streaming.codecs import EXACT, Codec, Int8
from services.trainer.engine.streaming.settings import StreamingSettings
from services.trainer.engine.streaming.stores import Place
from tests.fixtures.adapted import a_window, adapted_model
from tests.fixtures.page_files import open_page_files

TOKENS, TARGETS = 64, 16


pytestmark = pytest.mark.usefixtures("one_thread")


class Noisy(Int8):
    """What comes back is no more than akin to what was written."""

    name = "noisy"

    def decode(
        self, source_n: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        """The values, and much more noise."""
        values = super().decode(source_n, shape, dtype)
        generator = torch.Generator().manual_seed(1)
        return values + 6 * values.std() * torch.randn(shape, generator=generator)


def check(codec: Codec, folder: Path) -> str:
    model, parameters = adapted_model("llama", num_hidden_layers=4)
    places: dict[str, Any] = dict.fromkeys(
        ["layer_inputs", "hidden_gradients", "key_values"], Place.DISK
    )
    settings = StreamingSettings(
        TOKENS, TARGETS, 16, 8, page_folder=folder, layer_input_codec=codec, **places
    )
    found = check_codec(model, list(parameters.values()), settings, a_window(TOKENS))
    assert all(parameter.grad is None for parameter in parameters.values())
    return found


def test_exact_inputs_need_no_check(tmp_path: Path) -> None:
    assert check(EXACT, tmp_path) == ""


def test_a_good_codec_is_reported(tmp_path: Path) -> None:
    found = check(Int8(), tmp_path)
    told = re.fullmatch(
        r"layer inputs in int8: gradient cosine (\S+) against exact layer inputs on 33 tokens",
        found,
    )
    assert told is not None, found
    assert float(told[1]) > 0.99


def test_a_codec_that_sends_gradients_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"layer inputs in noisy: .* below 0\.9") as refused:
        check(Noisy(), tmp_path)
    assert refused.value.cause == BAD_MODEL
    told = re.search(r"cosine (\S+) against", str(refused.value))
    assert told is not None
    assert 0.1 < float(told[1]) < 0.8  # it is of some use, and not enough


@pytest.mark.parametrize(
    ("cosine", "is_refused"), [(1.0, False), (0.9, False), (0.899, True), (float("nan"), True)]
)
def test_from_which_cosine_on(
    cosine: float, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec_check, "gradient_cosine", lambda *_: (33, cosine))
    if is_refused:
        with pytest.raises(EngineError, match=r"which is below 0\.9"):
            check(Int8(), tmp_path)
    else:
        assert f"cosine {cosine:.4f}" in check(Int8(), tmp_path)


def test_its_page_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(Int8(), tmp_path)
    assert open_page_files(tmp_path) == []

    def fails(*_: Any) -> None:
        assert open_page_files(tmp_path)
        raise EngineError(BAD_MODEL, "no backward")

    monkeypatch.setattr(StreamingExecutor, "backward", fails)
    with pytest.raises(EngineError, match="no backward"):
        check(Int8(), tmp_path)
    assert open_page_files(tmp_path) == []
