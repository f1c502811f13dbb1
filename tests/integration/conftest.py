"""What the integration tests of several services use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.common.local import serve_locally
from services.planner.servicer import planner_service
from services.planner.settings import PlannerSettings


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a planner of the module's own."""
    folder = tmp_path_factory.mktemp("planner")
    settings = PlannerSettings(address="127.0.0.1:0", state_directory=folder)
    with serve_locally(planner_service(settings), settings) as address:
        yield address
