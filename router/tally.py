"""Counts between two looks at them: plain numbers, given to prometheus_client's metrics when somebody looks.

Counting there takes a lock and several calls for each number, ten numbers a request. Here it is an addition. Not
thread-safe: one event loop counts.
"""

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import Counter, Histogram


class WholeHistogram(Histogram):
    """A histogram that takes many observations at once."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add observations: how many fell into each bucket (the last one has no bound), and their sum."""
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


class Spread:
    """Observations for one child of a histogram."""

    __slots__ = ("_bounds", "_child", "_counts", "_total")

    def __init__(self, child: WholeHistogram, bounds: Sequence[float]) -> None:
        self._child = child
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def flush(self) -> None:
        """Give what was counted to the histogram."""
        if any(self._counts):
            self._child.add(self._counts, self._total)
            self._counts = [0] * len(self._counts)
            self._total = 0.0


class ReplyTally:
    """Replies of one route, answerer and status class."""

    __slots__ = ("_requests", "replies", "seconds")

    def __init__(self, requests: Counter, seconds: Spread) -> None:
        self._requests = requests
        self.replies = 0
        self.seconds = seconds

    def flush(self) -> None:
        """Give what was counted to the metrics."""
        if self.replies:
            self._requests.inc(self.replies)
            self.replies = 0
            self.seconds.flush()


class AnswerTally:
    """Answers of one route, backend, adapter, role, purpose and outcome."""

    __slots__ = (
        "_counters", "answers", "cost_usd", "first_token_seconds", "input_tokens", "output_tokens", "seconds",
    )  # fmt: skip

    def __init__(
        self,
        answers: Counter,
        input_tokens: Counter,
        output_tokens: Counter,
        cost_usd: Counter,
        seconds: Spread,
        first_token_seconds: Spread,
    ) -> None:
        self._counters = (answers, input_tokens, output_tokens, cost_usd)
        self.seconds = seconds
        self.first_token_seconds = first_token_seconds
        self.answers = self.input_tokens = self.output_tokens = 0
        self.cost_usd = 0.0

    def flush(self) -> None:
        """Give what was counted to the metrics."""
        if not self.answers:
            return
        counted = (self.answers, self.input_tokens, self.output_tokens, self.cost_usd)
        for counter, number in zip(self._counters, counted, strict=True):
            if number:
                counter.inc(number)
        self.answers = self.input_tokens = self.output_tokens = 0
        self.cost_usd = 0.0
        self.seconds.flush()
        self.first_token_seconds.flush()
