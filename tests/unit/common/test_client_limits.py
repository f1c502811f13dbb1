"""Limits of one client do not touch another's."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import client_limits
from services.common.client_limits import ClientLimits
from services.common.errors import ErrorReason, ServiceError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def is_let_in(limits: ClientLimits, client: str) -> bool:
    try:
        with limits.call_of(client):
            return True
    except ServiceError as error:
        return error.reason != ErrorReason.RATE_LIMITED


@given(
    rate=st.floats(0.1, 50),
    pauses=st.lists(st.floats(0, 5), min_size=1, max_size=60),
)
def test_no_more_than_the_rate_and_one_burst(rate: float, pauses: list[float]) -> None:
    clock = Clock()
    limits = ClientLimits(rate, 0, clock)
    let_in = 0
    for number, pause in enumerate(pauses):
        clock.now += pause
        let_in += is_let_in(limits, "a")
        assert is_let_in(limits, f"somebody else {number}")
    assert let_in <= max(1.0, 2 * rate) + rate * clock.now + 1e-6


def test_a_long_rest_saves_up_no_more_than_one_burst() -> None:
    clock = Clock()
    limits = ClientLimits(1.0, 0, clock)
    assert is_let_in(limits, "a")
    clock.now += 1000
    assert [is_let_in(limits, "a") for _ in range(4)] == [True, True, False, False]


def test_who_waits_as_told_is_let_in() -> None:
    clock = Clock()
    limits = ClientLimits(0.5, 0, clock)
    assert is_let_in(limits, "a")
    with pytest.raises(ServiceError, match=r"more than 0.5 calls a second: wait 2.0 s") as refused:
        limits.call_of("a").__enter__()
    clock.now += float(refused.value.metadata["retry_after_seconds"])
    assert is_let_in(limits, "a")


def test_open_calls_count_until_they_end() -> None:
    limits = ClientLimits(0, 2)
    with ExitStack() as calls:
        for _ in range(2):
            calls.enter_context(limits.call_of("a"))
        assert not is_let_in(limits, "a")
        assert is_let_in(limits, "b")
    assert is_let_in(limits, "a")


def test_memory_of_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_limits, "_MOST_CLIENTS", 3)
    limits = ClientLimits(0.5, 1)
    with limits.call_of("open"):
        for number in range(50):
            assert is_let_in(limits, f"client {number}")
        assert len(limits._accounts) <= 4
        assert not is_let_in(limits, "open")


def test_nought_is_no_limit() -> None:
    limits = ClientLimits(0, 0)
    assert all(is_let_in(limits, "a") for _ in range(1000))
    assert not limits._accounts
