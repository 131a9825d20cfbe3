"""How long a step waits for callers who were answered a moment ago and are likely to ask again. Knows no thread and no engine.

A step reads all weights, however few rows it has: a third of the time that a step of one prompt and some single tokens takes. Callers
in a loop ask again within some milliseconds; a step that begins without them is one step more.
"""

from collections.abc import Sequence

MOST_SECONDS = 0.02
"""Eight requests are read, rendered and tokenized in about ten milliseconds."""
SHARE = 1 / 32
"""Of the time that the answers took: what waiting in vain may cost."""
SURE = 0.5
"""Share of callers that have come back in time lately, above which rows that go on are made to wait for them too."""
_RATE = 1 / 8
"""What the last ones count in that share."""


class Returning:
    """Callers that are waited for, and until when."""

    def __init__(self) -> None:
        self._expected = 0
        self._until = 0.0
        self._returned = 0.0
        """Share of callers that came back in time lately."""
        self._num_answered = 0
        self._num_came = 0

    def answered(
        self, seconds: Sequence[float], num_left: int, num_waiting: int, now: float
    ) -> None:
        """A step has ended.

        Args:
            seconds: what the answers that ended with it took.
            num_left: rows that go on; as many as have ended, or more, are made to wait only when callers are known to return.
            num_waiting: requests in the queue; as many as have ended, or more, take their places.
        """
        if self._num_answered:
            share = min(1.0, self._num_came / self._num_answered)
            self._returned += _RATE * (share - self._returned)
        self._num_answered, self._num_came = len(seconds), 0
        is_worth_it = len(seconds) > num_left or self._returned > SURE
        self._expected = len(seconds) if len(seconds) > num_waiting and is_worth_it else 0
        self._until = now + min(MOST_SECONDS, SHARE * max(seconds, default=0.0))

    def came(self, now: float) -> None:
        """A request has come."""
        self._expected -= 1
        if now <= self._until:
            self._num_came += 1

    def seconds_left(self, now: float) -> float:
        """How long to wait for the next one; 0 when all are there, or it has been long enough."""
        return max(0.0, self._until - now) if self._expected > 0 else 0.0
