"""What makes two requests the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from elite.trainer.v1 import trainer_pb2
from services.common.errors import ServiceError
from services.trainer.api.convert import fingerprint, page, page_size, page_start, wanted_states
from services.trainer.jobs.states import FAILED, RUNNING
from tests.support.run_specs import a_spec

Spec = trainer_pb2.RunSpec
DATA = Path("/data")


@pytest.mark.parametrize(
    "bend",
    [
        lambda spec: setattr(spec, "display_name", "another name"),
        lambda spec: setattr(spec.plan, "step_seconds", 99.0),
        lambda spec: setattr(spec.plan.host_memory, "total_bytes", 99),
        lambda spec: setattr(spec.plan.execution, "loss_tile_rows", 99),
        lambda spec: spec.plan.optimizations.add(id="tiled_loss"),
        lambda spec: spec.planned_by.machine.profile.captured_at.GetCurrentTime(),
        lambda spec: setattr(spec.planned_by.machine.profile.host, "memory_available_bytes", 99),
    ],
)
def test_predictions_do_not_make_another_request(bend: Callable[[Spec], object]) -> None:
    spec = a_spec(DATA)
    bend(spec)
    assert fingerprint(spec) == fingerprint(a_spec(DATA))


@pytest.mark.parametrize(
    "bend",
    [
        lambda spec: setattr(spec, "model_path", "/models/mine"),
        lambda spec: setattr(spec.data, "path", "/data/other"),
        lambda spec: setattr(spec.data, "held_out_fraction", 0.1),
        lambda spec: setattr(spec.training, "seed", 1),
        lambda spec: setattr(spec.plan, "tier", 3),
        lambda spec: setattr(spec.plan, "context_tokens", 99),
        lambda spec: setattr(spec.plan.lora, "rank", 99),
        lambda spec: setattr(spec.plan.model, "model_id", "another"),
    ],
)
def test_what_was_asked_for_does(bend: Callable[[Spec], object]) -> None:
    spec = a_spec(DATA)
    bend(spec)
    assert fingerprint(spec) != fingerprint(a_spec(DATA))


def test_pages() -> None:
    request = trainer_pb2.ListRunsRequest
    assert page_size(request()) == 50
    assert page_size(request(page_size=7)) == 7
    assert page_start(request()) == ""
    assert page_start(request(page_token="20260131-154502-042k7qd")) == "20260131-154502-042k7qd"
    with pytest.raises(ServiceError, match="page_token: is 'made-up'"):
        page_start(request(page_token="made-up"))


def test_page_is_cut_by_number_and_by_bytes() -> None:
    runs = [trainer_pb2.Run(run_id=str(n), status_detail="x" * 100) for n in range(5)]
    run_bytes = runs[0].ByteSize()
    for size, room_bytes, expected in ((3, 10**6, 3), (4, 2 * run_bytes, 2), (4, 1, 1)):
        response = page(runs, size, 2 * room_bytes)
        assert list(response.runs) == runs[:expected]
        assert response.next_page_token == runs[expected - 1].run_id
    assert page(runs, 5, 10**6).next_page_token == ""
    assert page([], 5, 10**6) == trainer_pb2.ListRunsResponse()


def test_states_are_known_and_taken_once() -> None:
    assert wanted_states([RUNNING, FAILED, RUNNING]) == [RUNNING, FAILED]
    with pytest.raises(ServiceError, match=r"states\[1\]: is 99: one of RUN_STATE_PENDING"):
        wanted_states([RUNNING, 99])
