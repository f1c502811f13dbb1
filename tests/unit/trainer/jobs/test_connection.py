"""Which of Redis's answers mean that it cannot serve now."""

from __future__ import annotations

import pytest
import redis

from services.trainer.jobs.connection import is_unavailable


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (redis.ConnectionError("refused"), True),
        (redis.exceptions.ReadOnlyError("You can't write against a read only replica."), True),
        (redis.exceptions.OutOfMemoryError("command not allowed"), True),
        (redis.ResponseError("MISCONF Valkey is configured to save RDB snapshots"), True),
        (redis.ResponseError("NOREPLICAS Not enough good replicas to write."), True),
        (redis.ResponseError("BUSY Valkey is busy running a script."), True),
        (redis.ResponseError("BUSYGROUP Consumer Group name already exists"), False),
        (redis.ResponseError("WRONGTYPE Operation against a key"), False),
        (ValueError("MISCONF"), False),
    ],
)
def test_an_answer_that_may_be_another_later(error: Exception, expected: bool) -> None:
    assert is_unavailable(error) is expected
