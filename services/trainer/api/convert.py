"""Between requests and what the run service works with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from elite.planner.v1 import planner_pb2
from elite.trainer.v1 import trainer_pb2
from services.common.errors import invalid_field
from services.trainer.jobs.identifiers import is_run_id
from services.trainer.jobs.states import ALL_STATES, State

DEFAULT_PAGE_SIZE = 50


def fingerprint(spec: trainer_pb2.RunSpec) -> str:
    """Digest of what the caller asked for: model, data, training settings and tier.

    The plan's predictions, what the planner chose to reach the tier, and the machine's profile in
    the question to the planner change with the free memory of the moment. They are left out, so
    that a repeated call is recognised.
    """
    asked = trainer_pb2.RunSpec()
    asked.CopyFrom(spec)
    asked.ClearField("display_name")
    asked.ClearField("planned_by")
    plan = planner_pb2.Plan(
        tier=spec.plan.tier,
        context_tokens=spec.plan.context_tokens,
        target_tokens=spec.plan.target_tokens,
        model=spec.plan.model,
        lora=spec.plan.lora,
    )
    asked.plan.CopyFrom(plan)
    return hashlib.sha256(asked.SerializeToString(deterministic=True)).hexdigest()


def page_size(request: trainer_pb2.ListRunsRequest) -> int:
    """Runs on the page; 0 means the default."""
    return request.page_size or DEFAULT_PAGE_SIZE


def page_start(request: trainer_pb2.ListRunsRequest) -> str:
    """The run id the page begins after. Raises `ServiceError` for a token that is none of ours."""
    if request.page_token and not is_run_id(request.page_token):
        fix = "next_page_token of the page before, or empty"
        raise invalid_field("page_token", f"is {request.page_token[:80]!r}", fix)
    return request.page_token


def page(
    runs: Sequence[trainer_pb2.Run], size: int, max_message_bytes: int
) -> trainer_pb2.ListRunsResponse:
    """The first `size` of `runs`, or fewer if they would not fit into a message.

    There is a next page if there are more runs than fit.
    """
    response = trainer_pb2.ListRunsResponse()
    # Half of what may be sent: room for the encoding around the runs.
    room_bytes = max_message_bytes // 2
    for run in runs[:size]:
        room_bytes -= run.ByteSize()
        if response.runs and room_bytes < 0:
            break
        response.runs.append(run)
    if len(response.runs) < len(runs):
        response.next_page_token = response.runs[-1].run_id
    return response


def wanted_states(states: Iterable[int]) -> list[State]:
    """The states to list, each once. Raises `ServiceError` for one that does not exist."""
    wanted: list[State] = []
    for index, number in enumerate(states):
        found = [state for state in ALL_STATES if state == number]
        if not found:
            names = ", ".join(trainer_pb2.RunState.Name(state) for state in ALL_STATES)
            raise invalid_field(f"states[{index}]", f"is {number}", f"one of {names}")
        if found[0] not in wanted:
            wanted.append(found[0])
    return wanted
