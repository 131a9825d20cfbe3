"""A moment by which something must have happened, moved again and again at hardly any cost. Knows nothing of what it is for."""

import asyncio
import math
from collections.abc import Callable

NEVER = math.inf
_ROUNDING_SECONDS = 0.001
"""Event loops count timers in whole milliseconds: one may ring so much early."""


class Deadline:
    """One timer for all the waits of a connection, instead of one made and cancelled for each.

    A timer that rings before the moment, because the moment was moved on meanwhile, is set anew: a connection in use
    sets one every few seconds, not for every request. The moment is kept to the millisecond all the same.
    """

    __slots__ = ("_armed_for", "_loop", "_on_late", "_timer", "at")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_late: Callable[[], None]) -> None:
        self._loop = loop
        self._on_late = on_late
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = NEVER
        self.at = NEVER
        """Loop time; `NEVER` while nothing is waited for. Moving it on, or to `NEVER`, is an assignment."""

    def move(self, at: float) -> None:
        """Ring at a loop time, sooner or later than before."""
        self.at = at
        if at < self._armed_for:
            self._arm(at)

    def stop(self) -> None:
        """Ring no more, and hold nothing alive."""
        self.at = NEVER
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._armed_for = NEVER

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = at
        self._timer = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._timer, self._armed_for = None, NEVER
        if self._loop.time() >= self.at - _ROUNDING_SECONDS:
            self.at = NEVER
            self._on_late()
        elif self.at < NEVER:
            self._arm(self.at)
