"""Real parts for the trainer's integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.trainer_stack import TrainerStack
from tests.support.valkey import Valkey


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerStack]:
    """Store, API and one worker, shared by a module's tests."""
    yield from _stack(tmp_path_factory.mktemp("trainer"), with_worker=True)


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    """A store alone."""
    server = Valkey().start()
    yield server
    server.close()


@pytest.fixture
def lonely_trainer(tmp_path: Path) -> Iterator[TrainerStack]:
    """Store and API of one test's own; it starts its workers itself."""
    yield from _stack(tmp_path, with_worker=False)


def _stack(folder: Path, *, with_worker: bool) -> Iterator[TrainerStack]:
    valkey = Valkey().start()
    stack = TrainerStack(folder, valkey)
    try:
        stack.start_api()
        if with_worker:
            stack.start_worker()
        yield stack
    finally:
        stack.close()
        valkey.close()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerStack]:
    """Store and API, no worker: runs stay where they are put."""
    yield from _stack(tmp_path_factory.mktemp("api"), with_worker=False)
