"""How long a step waits for callers who were answered a moment ago and are likely to ask again. Knows no thread and no engine.

Callers of one batch with answers of one length end together. Without a wait the next step begins with the first of them that asks
again, and the others join a step later: one prompt then costs a step of its own, and the rows never end together again.
"""

from collections.abc import Sequence

MOST_SECONDS = 0.02
"""Eight requests are read, rendered and tokenized in about ten milliseconds."""
SHARE = 1 / 32
"""Of the time that the answers took: what waiting in vain may cost."""


class Returning:
    """Callers that are waited for, and until when."""

    def __init__(self) -> None:
        self._expected = 0
        self._until = 0.0

    def answered(
        self, seconds: Sequence[float], num_left: int, num_waiting: int, now: float
    ) -> None:
        """A step has ended.

        Args:
            seconds: what the answers that ended with it took.
            num_left: rows that go on; as many as have ended, or more, are not made to wait.
            num_waiting: requests in the queue; as many as have ended, or more, take their places.
        """
        self._expected = len(seconds) if len(seconds) > max(num_left, num_waiting) else 0
        self._until = now + min(MOST_SECONDS, SHARE * max(seconds, default=0.0))

    def came(self) -> None:
        """A request has come."""
        self._expected -= 1

    def seconds_left(self, now: float) -> float:
        """How long to wait for the next one; 0 when all are there, or it has been long enough."""
        return max(0.0, self._until - now) if self._expected > 0 else 0.0
