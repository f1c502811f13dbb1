"""A step that ends at any layer boundary goes on in another process: the same bits."""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from services.trainer.engine.executors.streaming import StreamingExecutor
from services.trainer.engine.failures import DISK_CORRUPT, EngineError, StopRequested
from services.trainer.engine.streaming import page_files, step_journal
from services.trainer.engine.streaming.codecs import Int8
from services.trainer.engine.streaming.settings import StreamingSettings
from services.trainer.engine.streaming.step_journal import Hooks, SavedStep, StepJournal
from services.trainer.engine.streaming.stores import Place
from services.trainer.jobs.fence import OwnedFolder
from tests.fixtures.adapted import a_window, adapted_model, gradients_of

TOKENS, TARGETS, LAYERS = 66, 16, 5
STAGES = 2 * LAYERS - 1
IDENTITY = {"seed": 1, "modules": ("q", "v")}
Gradients = dict[str, torch.Tensor]


pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(BaseException):
    """The process ends here."""


class Process:
    """An engine process in small: a model with adapters, an executor and a journal."""

    def __init__(
        self, folder: Path, stop: Callable[[], bool] = lambda: False, interval: float = 0,
        identity: dict[str, Any] = IDENTITY, **changes: Any,
    ) -> None:  # fmt: skip
        self.saved: list[SavedStep] = []
        self.asked_first = 0
        self.model, self.parameters = adapted_model("llama", num_hidden_layers=LAYERS)
        # Nobody else is there to lock out: "processes" are one, here.
        owned = OwnedFolder(folder / "step", (folder.parent / "lock").open("w"))
        self.journal = StepJournal(owned, identity, interval, clock=self._clock)
        self.journal.hooks = Hooks(stop, self._first, self.saved.append)
        settings: dict[str, Any] = {"chunk_tokens": 10, "loss_tile_rows": 5} | changes
        folder.mkdir(exist_ok=True)
        self.executor = StreamingExecutor(
            self.model,
            StreamingSettings(
                TOKENS, TARGETS, page_folder=folder, journal_folder=folder / "step", **settings
            ),
        )
        self.now = 0.0

    def run(self, step: int = 3, windows: int = 1, scale: float = 1.0) -> list[float]:
        """Windows of one step, as the stepper does them."""
        losses, scale = self.journal.begin_step(step, scale, list(self.parameters.values()))
        for index in range(len(losses), windows):
            self.journal.begin_window(losses)
            window = a_window(TOKENS).roll(index, dims=1)
            losses.append(self.executor.step(window, scale / windows, self.journal))
        return losses

    def gradients(self) -> Gradients:
        """By name."""
        return gradients_of(self.parameters)

    def _clock(self) -> float:
        return getattr(self, "now", 0.0)

    def _first(self) -> None:
        self.asked_first += 1


def killed_after(boundary: int) -> Callable[[], bool]:
    """Ends the process when so many boundaries have been passed, before the next is saved."""
    passed = 0

    def stop() -> bool:
        nonlocal passed
        passed += 1
        if passed > boundary:
            raise Killed
        return False

    return stop


def assert_same(one: Gradients, other: Gradients) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def undisturbed(folder: Path, windows: int = 1, **changes: Any) -> tuple[list[float], Gradients]:
    process = Process(folder, interval=1e9, **changes)
    return process.run(windows=windows), process.gradients()


ALL_ON = {
    place: {"layer_inputs": place, "hidden_gradients": place, "key_values": place}
    for place in Place
}
PLACEMENTS: dict[str, dict[str, Any]] = {
    "device": ALL_ON[Place.DEVICE],
    "host": ALL_ON[Place.HOST] | {"attention_outputs": Place.HOST},
    "disk": ALL_ON[Place.DISK] | {"attention_outputs": Place.DISK, "kept_keys": Place.DISK},
    "mixed, every second layer": {
        "layer_inputs": Place.DISK, "layer_input_interval": 2, "kept_keys": Place.HOST,
    },
    "every third layer, outputs on the host": {
        "layer_inputs": Place.HOST, "layer_input_interval": 3, "attention_outputs": Place.HOST,
    },
    "int8": ALL_ON[Place.HOST] | {"layer_input_codec": Int8(), "layer_input_interval": 2},
}  # fmt: skip


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_step_goes_on_at_every_boundary_with_the_same_bits(
    placement: str, tmp_path: Path
) -> None:
    changes = PLACEMENTS[placement]
    losses, gradients = undisturbed(tmp_path / "undisturbed", **changes)
    for boundary in range(STAGES + 1):
        folder = tmp_path / str(boundary)
        first = Process(folder, killed_after(boundary), **changes)
        if boundary < STAGES:
            with pytest.raises(Killed):
                first.run()
        else:
            first.run()
        assert [one.stages_done for one in first.saved] == list(range(1, boundary + 1))
        second = Process(folder, interval=1e9, **changes)
        assert second.run() == losses
        assert_same(second.gradients(), gradients)


def test_it_may_be_ended_again_and_again(tmp_path: Path) -> None:
    changes = PLACEMENTS["mixed, every second layer"]
    losses, gradients = undisturbed(tmp_path / "undisturbed", windows=2, **changes)
    folder, lives = tmp_path / "run", 0
    while True:
        lives += 1
        process = Process(folder, killed_after(3), **changes)
        try:
            found = process.run(windows=2)
            break
        except Killed:
            assert process.saved
    assert lives == -(-2 * STAGES // 3)
    assert found == losses
    assert_same(process.gradients(), gradients)


def test_windows_that_are_done_are_not_done_again(tmp_path: Path) -> None:
    losses, gradients = undisturbed(tmp_path / "undisturbed", windows=3)
    first = Process(tmp_path / "run", killed_after(STAGES))
    with pytest.raises(Killed):
        first.run(windows=3)
    # Its last save is of no stage of the second window.
    second = Process(tmp_path / "run", interval=1e9)
    assert second.run(windows=3) == losses
    assert_same(second.gradients(), gradients)
    state = json.loads((tmp_path / "run" / "step" / "state.json").read_text())
    assert (state["losses"], state["stages_done"]) == (losses[:2], 0)


def test_it_is_saved_when_the_interval_has_passed_and_no_sooner(tmp_path: Path) -> None:
    process = Process(tmp_path, interval=10)
    times = iter([*range(0, 6 * STAGES, 6)])

    def pass_time() -> bool:
        process.now = next(times)
        return False

    process.journal.hooks = Hooks(pass_time, process._first, process.saved.append)
    process.run()
    # Boundaries are six seconds apart, saves at least ten.
    assert [one.stages_done for one in process.saved] == [3, 5, 7, 9]
    assert process.asked_first == 1
    assert all(one.step == 3 and one.stage_count == STAGES for one in process.saved)
    assert process.saved[0].bytes > process.saved[-1].bytes > 0


def test_pages_are_written_once(tmp_path: Path) -> None:
    often, once = Process(tmp_path / "often"), Process(tmp_path / "once", interval=10)
    often.run()
    boundaries = iter(range(STAGES))
    once.journal.hooks = Hooks(
        lambda: setattr(once, "now", 20 * (next(boundaries) == STAGES - 1)) or False,
        once._first,
        once.saved.append,
    )
    once.run()
    hidden = 7 * 4096
    kept = 3 * 7 * 4096
    assert [one.bytes for one in once.saved] == [kept + hidden]
    assert sum(one.bytes for one in often.saved) == kept + STAGES * hidden


def test_a_stop_saves_first(tmp_path: Path) -> None:
    losses, gradients = undisturbed(tmp_path / "undisturbed")
    boundaries = iter([False, False, True])
    first = Process(tmp_path / "run", lambda: next(boundaries), interval=1e9)
    with pytest.raises(StopRequested):
        first.run()
    assert [one.stages_done for one in first.saved] == [3]
    second = Process(tmp_path / "run", interval=1e9)
    assert second.run() == losses
    assert_same(second.gradients(), gradients)


@pytest.mark.parametrize("what", ["identity", "format", "step", "scale", "state", "gradients"])
def test_another_step_is_not_continued(
    what: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, gradients = undisturbed(tmp_path / "undisturbed")
    with pytest.raises(Killed):
        Process(tmp_path / "run", killed_after(7)).run(
            step=2 if what == "step" else 3, scale=2.0 if what == "scale" else 1.0
        )
    if what == "state":
        (tmp_path / "run" / "step" / "state.json").write_text('{"identity"')
    if what == "gradients":
        for file in (tmp_path / "run" / "step").glob("gradients-*"):
            file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    if what == "format":
        monkeypatch.setattr(step_journal, "_FORMAT", -1)
    identity = {"seed": 2} if what == "identity" else IDENTITY
    process = Process(tmp_path / "run", interval=1e9, identity=identity)
    process.run()
    assert_same(process.gradients(), gradients)
    if what in ("identity", "format", "state", "gradients"):
        assert "a step in the middle is dropped" in capsys.readouterr().err


def test_a_loss_scale_that_was_lowered_within_the_step_goes_on(tmp_path: Path) -> None:
    whole = Process(tmp_path / "undisturbed", interval=1e9)
    whole.run(scale=0.5)
    with pytest.raises(Killed):
        Process(tmp_path / "run", killed_after(7)).run(scale=0.5)
    process = Process(tmp_path / "run", interval=1e9)
    # The checkpoint of the step's beginning has the scale of then.
    process.run(scale=1.0)
    assert_same(process.gradients(), whole.gradients())


@pytest.mark.parametrize("place", [Place.HOST, Place.DISK])
def test_a_page_that_changed_on_the_disk_is_noticed(place: Place, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Process(tmp_path, killed_after(4), layer_inputs=place).run()
    with (tmp_path / "step" / "layer-inputs.pages").open("r+b") as file:
        file.seek(4096 + 100)
        file.write(b"\x55\xaa")
    with pytest.raises(EngineError, match="page 1 of a page file") as raised:
        Process(tmp_path, interval=1e9, layer_inputs=place).run()
    assert raised.value.cause == DISK_CORRUPT


def test_without_room_the_step_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses, gradients = undisturbed(tmp_path / "undisturbed")
    process = Process(tmp_path / "run")
    monkeypatch.setattr(page_files, "_free_bytes", lambda _: 1000)
    assert process.run() == losses
    assert_same(process.gradients(), gradients)
    assert process.saved == []
    assert capsys.readouterr().err.count("steps are not saved in the middle") == 1


FULL_DISK: dict[str, Exception] = {
    "system": OSError(errno.ENOSPC, "No space left on device"),
    "safetensors": SafetensorError("I/O error: No space left on device (os error 28)"),
}


def fails_at(*writes: int, error: Exception) -> Callable[..., None]:
    """`save_file` that fails at these writes, counted from 1."""
    numbers = itertools.count(1)

    def save(*arguments: Any) -> None:
        if next(numbers) in writes:
            raise error
        save_file(*arguments)

    return save


@pytest.mark.parametrize("error", FULL_DISK.values(), ids=FULL_DISK)
@pytest.mark.parametrize("write", [1, 4, STAGES + 1], ids=["first", "fourth", "between windows"])
def test_a_disk_that_fills_up_ends_the_saving_and_not_the_step(
    write: int,
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = PLACEMENTS["mixed, every second layer"]
    losses, gradients = undisturbed(tmp_path / "undisturbed", windows=2, **changes)
    full = range(write, 10 * STAGES)
    monkeypatch.setattr(step_journal, "save_file", fails_at(*full, error=error))
    process = Process(tmp_path / "run", **changes)
    assert process.run(windows=2) == losses
    assert_same(process.gradients(), gradients)
    assert [one.stages_done for one in process.saved] == list(range(1, write))
    assert capsys.readouterr().err.count("steps are not saved in the middle") == 1
    # A state of the first window would need pages that the second has overwritten.
    assert not process.journal.is_saved
    again = Process(tmp_path / "run", interval=1e9, **changes)
    assert again.run(windows=2) == losses
    assert_same(again.gradients(), gradients)


def test_between_windows_there_may_be_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, gradients = undisturbed(tmp_path / "undisturbed", windows=2)
    monkeypatch.setattr(step_journal, "save_file", fails_at(4, error=FULL_DISK["safetensors"]))
    process = Process(tmp_path / "run")
    assert process.run(windows=2) == losses
    assert [one.stages_done for one in process.saved] == [1, 2, 3]
    second = Process(tmp_path / "run", interval=1e9)
    assert second.journal.found == (3, 1, 0)
    assert second.run(windows=2) == losses
    assert_same(second.gradients(), gradients)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), SafetensorError("no header")])
@pytest.mark.parametrize("write", [1, STAGES + 1], ids=["in a window", "between windows"])
def test_what_is_no_full_disk_ends_the_step(
    write: int, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_journal, "save_file", fails_at(write, error=error))
    with pytest.raises(type(error), match=str(error.args[-1])):
        Process(tmp_path).run(windows=2)


def test_the_interval_begins_again_at_the_end_of_a_step(tmp_path: Path) -> None:
    process = Process(tmp_path, interval=10)
    due = []
    for process.now in (10, 19, 20):
        due.append(process.journal.is_due)
        if process.now == 10:
            process.journal.end_step()
    assert due == [True, False, True]


def test_nothing_is_left_after_a_run(tmp_path: Path) -> None:
    process = Process(tmp_path, layer_inputs=Place.DISK)
    process.run()
    assert process.journal.is_saved
    process.journal.end_step()
    assert not process.journal.is_saved
    assert not (tmp_path / "step" / "state.json").exists()
    process.journal.drop()
    assert list(tmp_path.iterdir()) == []
