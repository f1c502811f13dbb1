"""The state machine as a graph."""

from __future__ import annotations

import pytest

from services.trainer.jobs.states import (
    ALL_STATES,
    PAUSED,
    PENDING,
    RESUMABLE_STATES,
    RUNNING,
    SUCCEEDED,
    TERMINAL_STATES,
    TRANSITIONS,
    WAITING_STATES,
    State,
    may_become,
    state_name,
    state_of,
)


def reachable(start: State) -> set[State]:
    found, frontier = {start}, [start]
    while frontier:
        for target in TRANSITIONS[frontier.pop()] - found:
            found.add(target)
            frontier.append(target)
    return found


def test_every_state_can_be_reached_and_left_for_an_end() -> None:
    assert reachable(PENDING) == set(ALL_STATES)
    for state in ALL_STATES:
        assert reachable(state) & TERMINAL_STATES


def test_only_what_is_resumable_leaves_an_end() -> None:
    left = {state for state in TERMINAL_STATES if TRANSITIONS[state]}
    assert left | {PAUSED} == RESUMABLE_STATES
    assert not TRANSITIONS[SUCCEEDED]


def test_whatever_has_not_ended_can_be_paused() -> None:
    assert {state for state in ALL_STATES if may_become(state, PAUSED)} == WAITING_STATES | {
        RUNNING
    }
    assert not may_become(PAUSED, RUNNING)


def test_states_are_waiting_or_running_or_paused_or_ended() -> None:
    assert WAITING_STATES | TERMINAL_STATES | {RUNNING, PAUSED} == set(ALL_STATES)
    assert not any(may_become(state, state) for state in ALL_STATES)


@pytest.mark.parametrize("state", ALL_STATES)
def test_names_are_read_back(state: State) -> None:
    assert state_of(state_name(state)) == state
    assert state_name(state).islower()
