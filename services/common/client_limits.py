"""How much may be asked for: by one client a second and at once, and by all at once."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from services.common.errors import ErrorReason, ServiceError

# Clients whose buckets are remembered; those not heard of for longest are forgotten.
_MOST_CLIENTS = 10_000


@dataclass(slots=True)
class _Account:
    tokens: float
    filled_at: float
    calls: int = 0


class OpenCalls:
    """A count of the open calls of all clients. kind: what a refusal calls them."""

    def __init__(self, most: int, kind: str = "calls") -> None:
        self._most, self._kind, self._open = most, kind, 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """For as long as a call lasts. Raises `ServiceError` (RATE_LIMITED)."""
        if self._open >= self._most:
            problem = f"{self._open} {self._kind} are open, all that this server takes"
            raise ServiceError(ErrorReason.RATE_LIMITED, f"{problem}: try again later")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


class ClientLimits:
    """A token bucket and a count of open calls for every client. Zero is no limit.

    A bucket holds as many calls as come in two seconds, at least one; so short bursts pass.
    """

    def __init__(
        self, per_second: float, at_once: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second, self._at_once, self._clock = per_second, at_once, clock
        self._depth = max(1.0, 2 * per_second)
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    @contextmanager
    def call_of(self, client: str, *, any_rate: bool = False) -> Iterator[None]:
        """For as long as a call lasts. Raises `ServiceError` (RATE_LIMITED).

        any_rate: it counts among the client's open calls and not as one of a second.
        """
        if not (self._per_second or self._at_once):
            yield
            return
        account = self._account(client)
        self._refuse_one_too_many(account)
        if not any_rate:
            self._take(account)
        account.calls += 1
        try:
            yield
        finally:
            account.calls -= 1

    def _account(self, client: str) -> _Account:
        account = self._accounts.setdefault(client, _Account(self._depth, self._clock()))
        self._accounts.move_to_end(client)
        while len(self._accounts) > _MOST_CLIENTS:
            name, oldest = self._accounts.popitem(last=False)
            if oldest.calls:  # it is here yet
                self._accounts[name] = oldest
                break
        return account

    def _refuse_one_too_many(self, account: _Account) -> None:
        if self._at_once and account.calls >= self._at_once:
            problem = f"{account.calls} calls of yours are open, the limit for one client"
            raise ServiceError(ErrorReason.RATE_LIMITED, f"{problem}: end some first")

    def _take(self, account: _Account) -> None:
        if not self._per_second:
            return
        now = self._clock()
        filled = account.tokens + (now - account.filled_at) * self._per_second
        account.tokens, account.filled_at = min(self._depth, filled), now
        if account.tokens < 1:
            wait = (1 - account.tokens) / self._per_second
            raise ServiceError(
                ErrorReason.RATE_LIMITED,
                f"more than {self._per_second:g} calls a second: wait {wait:.1f} s",
                metadata={"retry_after_seconds": f"{wait:.3f}"},
            )
        account.tokens -= 1
