"""When a sick backend is left alone: a circuit breaker with a half-open probe. Pure but for its own counters."""

from collections import deque
from typing import Literal

from router.policy import Breaker

State = Literal["closed", "open", "half_open"]


class CircuitBreaker:
    """Opens after `failures` within `window` seconds; after `open_for` one probe may try, and its result decides.

    Every method takes the time (seconds of a monotonic clock).
    """

    def __init__(self, rule: Breaker) -> None:
        self._rule = rule
        self._failed_at: deque[float] = deque(maxlen=rule.failures)
        self._opened_at: float | None = None
        self._probing_since: float | None = None

    def state(self, now: float) -> State:
        """The state as a caller would find it."""
        if self._opened_at is None:
            return "closed"
        return "half_open" if now - self._opened_at >= self._rule.open_for else "open"

    def may_try(self, now: float) -> bool:
        """Whether a call may go out; in the half-open state only one probe at a time."""
        found = self.state(now)
        if found == "closed":
            return True
        if found == "open":
            return False
        # A probe whose caller went away reports nothing: after `open_for` another may try.
        if self._probing_since is not None and now - self._probing_since < self._rule.open_for:
            return False
        self._probing_since = now
        return True

    def succeeded(self, now: float) -> None:
        """A call was answered."""
        self._opened_at = self._probing_since = None
        self._failed_at.clear()

    def failed(self, now: float) -> None:
        """A call was not answered."""
        self._probing_since = None
        if self._opened_at is not None:
            self._opened_at = now
            return
        self._failed_at.append(now)
        full = len(self._failed_at) == self._rule.failures
        if full and now - self._failed_at[0] <= self._rule.window:
            self._opened_at = now
