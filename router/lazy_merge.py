"""Sorted streams to one sorted stream, each opened only when its turn comes. Pure but for what the streams do."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

K = TypeVar("K")
T = TypeVar("T")


def lazily_merged(
    sources: Iterable[tuple[K, Callable[[], Iterator[tuple[K, T]]]]],
) -> Iterator[tuple[K, T]]:
    """Items of all sources by their keys. `heapq.merge` would open every source at once: a month of segments.

    Args:
        sources: for each a key that none of its items is below, and what opens it. Items are (key, value) in the
            order of the keys.
    """
    # The number settles ties, so that neither values nor openers are compared.
    waiting: list[tuple[Any, int, Any, Any]] = [
        (key, number, open_, None) for number, (key, open_) in enumerate(sources)
    ]
    heapq.heapify(waiting)
    while waiting:
        key, number, value, stream = waiting[0]
        if stream is None:
            stream = value()
        else:
            yield key, value
        following = next(stream, None)
        if following is None:
            heapq.heappop(waiting)
        else:
            heapq.heapreplace(waiting, (following[0], number, following[1], stream))
