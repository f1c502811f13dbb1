"""Connections to Redis, and what callers hear when it is away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    TimeoutError,
)
from redis.retry import Retry

from services.common.errors import ErrorReason, ServiceError
from services.trainer.settings import TrainerSettings

# Redis cannot serve now, and may serve again later.
UNAVAILABLE_ERRORS = (
    ConnectionError,
    TimeoutError,
    ReadOnlyError,
    OutOfMemoryError,
    ClusterDownError,
)
# The same as plain ResponseErrors: its disk is full, it reads its file, too few replicas are there,
# a script of another takes long.
_CANNOT_SERVE = ("MISCONF", "LOADING", "NOREPLICAS", "BUSY ")

# A pooled connection may have died with an earlier Redis, so a broken one is tried once more; the
# scripts bear being sent twice. A timeout is not tried again: callers wait already.
_RETRIED = (ConnectionError,)


def async_client(settings: TrainerSettings, connections: int = 100) -> redis.asyncio.Redis:
    """A pool of connections for one event loop, with short timeouts.

    connections: as many commands may wait for an answer at a time; further ones fail at once.
    """
    return redis.asyncio.Redis.from_url(
        settings.redis_url, retry=AsyncRetry(NoBackoff(), 1, _RETRIED),
        max_connections=connections, **_timeouts(settings),
    )  # fmt: skip


def blocking_client(settings: TrainerSettings) -> redis.Redis:
    """A pool of connections for threads, with short timeouts."""
    return redis.Redis.from_url(
        settings.redis_url, retry=Retry(NoBackoff(), 1, _RETRIED), **_timeouts(settings)
    )


def is_unavailable(error: BaseException) -> bool:
    """Whether the error says that Redis cannot serve now."""
    if isinstance(error, UNAVAILABLE_ERRORS):
        return True
    return isinstance(error, redis.ResponseError) and str(error).startswith(_CANNOT_SERVE)


@contextmanager
def store_errors(settings: TrainerSettings) -> Iterator[None]:
    """Turns an outage of Redis into `ServiceError` (STORE_UNAVAILABLE)."""
    try:
        yield
    except redis.RedisError as error:
        if not is_unavailable(error):
            raise
        raise store_unavailable(settings, error) from error


def store_unavailable(settings: TrainerSettings, error: BaseException) -> ServiceError:
    """The error that tells a caller that Redis is away."""
    return ServiceError(
        ErrorReason.STORE_UNAVAILABLE,
        f"the store of runs (Redis at {settings.redis_place}) does not answer ({error}): "
        "try again in a moment; to repeat CreateRun safely give it a request_id",
    )


def _timeouts(settings: TrainerSettings) -> dict[str, Any]:
    return {
        "socket_connect_timeout": settings.redis_connect_timeout_seconds,
        "socket_timeout": settings.redis_timeout_seconds,
    }
