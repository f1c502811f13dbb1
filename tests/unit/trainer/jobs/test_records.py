"""Run ids and records."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from elite.trainer.v1 import trainer_pb2
from services.trainer.jobs.identifiers import is_run_id, new_run_id
from services.trainer.jobs.records import new_record_fields, record_from_fields
from services.trainer.jobs.states import PENDING
from tests.support.run_specs import a_plan

moments = st.datetimes(
    datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)
)  # a naive bound is hypothesis's form


@given(moment=moments, later=st.integers(1, 10**12))
def test_run_ids_sort_by_time(moment: datetime, later: int) -> None:
    earlier_id = new_run_id(moment)
    later_id = new_run_id(moment + timedelta(milliseconds=later))
    assert earlier_id < later_id
    assert is_run_id(earlier_id)
    assert len(earlier_id) == 23


def test_run_ids_of_one_moment_differ() -> None:
    now = datetime.now(UTC)
    assert len({new_run_id(now) for _ in range(100)}) == 100


def test_only_run_ids_pass() -> None:
    for text in ("", "run-1", "20260131-154502-042k7q", "20260131-154502-042k7qd\n", "../../etc"):
        assert not is_run_id(text)


def test_new_record_is_read_back() -> None:
    run = trainer_pb2.Run(run_id="r", request_id="q", state=PENDING)
    run.spec.plan.CopyFrom(a_plan())
    run.spec.training.steps = 7
    run.progress.total_steps = 7
    fields = {
        name.encode(): value if isinstance(value, bytes) else str(value).encode()
        for name, value in new_record_fields(run, "print", 1_700_000_000_123).items()
    }
    record = record_from_fields("r", fields)
    run.created_at.FromMilliseconds(1_700_000_000_123)
    assert record.run == run
    assert (record.version, record.fingerprint, record.owner) == (1, "print", "")
    assert record.delivery_count == 0
