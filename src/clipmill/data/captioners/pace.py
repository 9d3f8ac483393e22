"""How fast, for how much and for how long an endpoint is asked, over all threads together."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from clipmill.errors import BudgetError


class Pace:
    """Starts of requests, evenly apart: a burst would use up the endpoint's own window."""

    def __init__(self, requests_per_minute: float) -> None:
        self._gap = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._lock = Lock()

    def reserve(self) -> float:
        """Take the next start; the seconds until it."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._gap
            return start - now

    def hold(self, seconds: float) -> None:
        """Let no request that isn't under way start before so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class Budget:
    """Requests and tokens that may be spent; 0 for no limit.

    A request under way counts as the dearest so far, so only one that is dearer than all before it
    can pass the limit.
    """

    def __init__(self, max_requests: int, max_tokens: int) -> None:
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._num_requests = 0
        self._num_tokens = 0
        self._under_way = 0
        self._dearest = 0
        self._lock = Lock()

    @contextmanager
    def request(self) -> Iterator["Spent"]:
        """Begin a request; raises BudgetError, before anything is sent, where it's one too many."""
        with self._lock:
            tokens = self._num_tokens + (self._under_way + 1) * self._dearest
            if self._max_requests and self._num_requests >= self._max_requests:
                raise _spent(f"{self._num_requests} requests", "endpoint.max_requests")
            if self._max_tokens and (
                self._num_tokens >= self._max_tokens or tokens > self._max_tokens
            ):
                raise _spent(f"{self._num_tokens} tokens", "endpoint.max_total_tokens")
            self._num_requests += 1
            self._under_way += 1
        spent = Spent()
        try:
            yield spent
        finally:
            with self._lock:
                self._under_way -= 1
                self._num_tokens += spent.num_tokens
                self._dearest = max(self._dearest, spent.num_tokens)


class Spent:
    """What one request has cost."""

    def __init__(self) -> None:
        self.num_tokens = 0

    def tokens(self, count: int) -> None:
        """Note the tokens that the endpoint counted."""
        self.num_tokens = count


class Streak:
    """Failures one after the other."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._length = 0
        self._lock = Lock()

    def succeeded(self) -> None:
        """End the streak."""
        with self._lock:
            self._length = 0

    def failed(self) -> bool:
        """Lengthen the streak; whether it has reached its limit."""
        with self._lock:
            self._length += 1
            return self._length >= self._limit


def _spent(what: str, field: str) -> BudgetError:
    return BudgetError(
        f"the budget of this run is spent: {what}",
        expected=f"captions for all samples within {field}",
        action=f"run again to go on with a fresh budget, or raise {field}: what was answered "
        "is kept",
    )
