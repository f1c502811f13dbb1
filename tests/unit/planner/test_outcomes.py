"""The outcome store survives restarts, torn lines and company, and says when it cannot write."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from services.common.errors import ErrorReason, ServiceError
from services.planner.outcomes import OutcomeStore


def test_outcomes_are_counted_across_restarts(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    assert OutcomeStore(folder).append({"run": "a"}) == 1
    again = OutcomeStore(folder)
    assert again.append({"run": "b"}) == 2
    assert again.append({"run": "c"}) == 3
    lines = (folder / "outcomes.jsonl").read_text().splitlines()
    assert [json.loads(line)["run"] for line in lines] == ["a", "b", "c"]


def test_a_torn_line_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "outcomes.jsonl").write_text('{"run": "a"}\n{"run": "b')
    assert OutcomeStore(tmp_path).append({"run": "c"}) == 2
    assert (tmp_path / "outcomes.jsonl").read_text().splitlines()[-1] == '{"run": "c"}'


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="ELITE_PLANNER_STATE_DIRECTORY") as refusal:
        OutcomeStore(tmp_path / "file").append({})
    assert refusal.value.reason is ErrorReason.STORE_UNAVAILABLE


def append_many(folder: Path, name: str, times: int) -> list[int]:
    store = OutcomeStore(folder)
    return [store.append({"run": f"{name}{number}" * 1000}) for number in range(times)]


def test_several_processes_append_to_one_file(tmp_path: Path) -> None:
    (tmp_path / "outcomes.jsonl").write_text('{"run": "torn')
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        jobs = [pool.submit(append_many, tmp_path, name, 20) for name in "abc"]
        counts = [job.result(timeout=60) for job in jobs]
    assert sorted(count for some in counts for count in some) == list(range(1, 61))
    lines = (tmp_path / "outcomes.jsonl").read_text().splitlines()[1:]
    assert len({json.loads(line)["run"] for line in lines}) == 60
    assert len(OutcomeStore(tmp_path).read()) == 60


def test_what_another_process_appended_is_read(tmp_path: Path) -> None:
    store, other = OutcomeStore(tmp_path), OutcomeStore(tmp_path)
    assert list(store.read()) == []
    other.append({"run": "a"})
    assert [one["run"] for one in store.read()] == ["a"]
    other.append({"run": "b"})
    store.append({"run": "c"})
    assert [one["run"] for one in store.read()] == ["a", "b", "c"]
    assert store.read() is store.read()


def test_only_what_was_appended_is_parsed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = OutcomeStore(tmp_path), OutcomeStore(tmp_path)
    for run in "ab":
        other.append({"run": run})
    store.read()
    parsed: list[bytes] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda line: parsed.append(line) or loads(line))
    store.read()
    assert parsed == []
    other_line = b'{"run": "c"}\n'
    with (tmp_path / "outcomes.jsonl").open("ab") as file:
        file.write(other_line)
    assert len(store.read()) == 3
    assert parsed == [other_line.strip()]


def test_a_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    store = OutcomeStore(tmp_path)
    store.append({"run": "a"})
    with (tmp_path / "outcomes.jsonl").open("ab", buffering=0) as file:
        file.write(b'{"run": ')
        assert len(store.read()) == 1
        file.write(b'"b"}\n')
        assert [one["run"] for one in store.read()] == ["a", "b"]


def test_a_file_that_was_edited_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    store = OutcomeStore(tmp_path)
    for run in "abc":
        store.append({"run": run})
    path.write_text('{"run": "d"}\n')
    assert [one["run"] for one in store.read()] == ["d"]
    path.unlink()
    assert list(store.read()) == []
