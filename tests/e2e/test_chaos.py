"""Every fault once, at a random moment: nothing is lost. `python -m bench.chaos` does it more."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.support.chaos import Chaos
from tests.support.faults import FAULTS


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    made = Chaos(tmp_path_factory.mktemp("chaos"))
    yield made
    made.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost(chaos: Chaos, fault: str) -> None:
    seed = random.randrange(2**32)
    result = chaos.run(fault, FAULTS[fault], random.Random(seed))
    assert result.problems == [], f"seed {seed}, {result}\n{chaos.stack.describe()[-4000:]}"
