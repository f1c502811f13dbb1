"""The housekeeper goes on whatever happens."""

from __future__ import annotations

import threading

import pytest
from redis.exceptions import ConnectionError

from services.trainer.settings import TrainerSettings
from services.trainer.worker import tidying


@pytest.mark.parametrize("error", [ValueError("a bug"), ConnectionError("redis is away")])
def test_the_housekeeper_outlives_a_look_that_fails(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    looks: list[int] = []
    has_looked_again = threading.Event()

    def look(_: tidying.Tidying) -> None:
        looks.append(1)
        if len(looks) == 1:
            raise error
        has_looked_again.set()

    monkeypatch.setattr(tidying.Tidying, "once", look)
    monkeypatch.setattr(tidying, "_PAUSE_SECONDS", 0.01)
    housekeeper = tidying.Housekeeper(TrainerSettings())
    housekeeper.start()
    assert has_looked_again.wait(10)
    housekeeper.stop()
