"""One request's way through the worker: submit, gather or stream, count. Knows neither dialect nor HTTP.

Closing a stream, or cancelling a gather, closes the worker's iterators, which frees their rows.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Protocol

from serving.error_bodies import reason
from serving.errors import Incomplete, ServingError
from serving.generation import Finished, Job, TokenOut
from serving.metrics import ServingMetrics

Clock = Callable[[], float]
Item = TokenOut | Finished
Generated = tuple[Finished, Sequence[TokenOut]]


class Submits(Protocol):
    """The part of the worker that a request needs."""

    def submit(self, job: Job) -> AsyncIterator[Item]:
        """The generation's tokens, then its end."""
        ...

    def resident(self) -> list[str]:
        """Adapters that are loaded now."""
        ...


class Meter:
    """Times one request and counts how it ends: answered, failed, or dropped by its caller."""

    def __init__(
        self, metrics: ServingMetrics, worker: Submits, clock: Clock = time.perf_counter
    ) -> None:
        self._metrics = metrics
        self._worker = worker
        self._clock = clock
        self._start = clock()
        self._first: float | None = None
        self._is_counted = False
        self._is_handed_over = False
        self.adapter_id: str | None = None
        self.validation_seconds = 0.0

    def __enter__(self) -> "Meter":
        self._is_handed_over = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._is_counted or self._is_handed_over:
            return
        label = "dropped"
        if isinstance(why, ServingError):
            label = reason(why)
        elif isinstance(why, Exception):
            label = "generation"
        self._is_counted = True
        self._metrics.failed(label, self._adapter_label())

    def _adapter_label(self) -> str:
        if self.adapter_id is None:
            return "base"
        return self.adapter_id if self.adapter_id in self._worker.resident() else "unknown"

    @property
    def seconds(self) -> float:
        """Since the request came in."""
        return self._clock() - self._start

    @property
    def first_token_seconds(self) -> float:
        """From the request's arrival to its first token; until then, to now."""
        return (self._clock() if self._first is None else self._first) - self._start

    def admitted(self, job: Job) -> None:
        """The parameters held."""
        self.validation_seconds = self.seconds
        self.adapter_id = job.adapter_id
        self._metrics.started(job, self.validation_seconds)

    def hand_over(self) -> None:
        """The request goes on elsewhere, in a `with` of its own: leaving this one counts nothing."""
        self._is_handed_over = True

    def token(self) -> None:
        """A token came."""
        if self._first is None:
            self._first = self._clock()

    def first_token_after(self, seconds: float) -> None:
        """The first token of a sequence came so long after it was queued; the earliest of several counts."""
        at = self._start + self.validation_seconds + seconds
        self._first = at if self._first is None else min(self._first, at)

    def answered(self, ends: Sequence[Finished]) -> None:
        """The last sequence has ended."""
        self._is_counted = True
        self._metrics.answered(ends, self.seconds, self.first_token_seconds)

    def bad_request(self) -> None:
        """The body could not be read."""
        self._is_counted = True
        self._metrics.failed("bad_request", "unknown")


async def _items(worker: Submits, job: Job) -> AsyncGenerator[Item]:
    """One generation's tokens, then its end.

    Raises:
        Incomplete: the worker's stream ended without an end.
        ServingError: as the worker raises.
    """
    items = worker.submit(job)
    try:
        async for item in items:
            yield item
            if isinstance(item, Finished):
                return
        raise Incomplete("Incomplete generation")
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()


async def tokens(worker: Submits, job: Job, meter: Meter) -> AsyncGenerator[Item]:
    """One generation as it comes; raises as `_items`."""
    async with aclosing(_items(worker, job)) as items:
        async for item in items:
            meter.token()
            yield item


async def whole(worker: Submits, job: Job, meter: Meter) -> Generated:
    """One generation, gathered; raises as `_items`."""
    found: list[TokenOut] = []
    async with aclosing(_items(worker, replace(job, at_once=True))) as items:
        async for item in items:
            if isinstance(item, Finished):
                meter.first_token_after(item.first_token_seconds)
                return item, found
            found.append(item)
    raise Incomplete("Incomplete generation")


def copies(job: Job, num: int) -> list[Job]:
    """The same generation `num` times; a given seed counts up, so that they differ."""
    seed = job.sampling.seed
    return [
        job
        if seed is None or index == 0
        else replace(job, sampling=replace(job.sampling, seed=(seed + index) % 2**64))
        for index in range(num)
    ]


async def gathered(worker: Submits, jobs: Sequence[Job], meter: Meter) -> list[Generated]:
    """All generations of one request; the first failure ends the others."""
    if len(jobs) == 1:
        return [await whole(worker, jobs[0], meter)]
    tasks = [asyncio.create_task(whole(worker, job, meter)) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def merged(
    worker: Submits, jobs: Sequence[Job], meter: Meter
) -> AsyncGenerator[tuple[int, Item]]:
    """All generations of one request as they come, each item with its generation's index."""
    if len(jobs) == 1:
        async with aclosing(tokens(worker, jobs[0], meter)) as items:
            async for item in items:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, Item | ServingError]] = asyncio.Queue()

    async def pump(index: int, job: Job) -> None:
        ending: ServingError | None = Incomplete("Incomplete generation")
        try:
            async with aclosing(tokens(worker, job, meter)) as items:
                async for item in items:
                    queue.put_nowait((index, item))
            ending = None
        except ServingError as why:
            ending = why
        finally:  # whatever happened, the reader below must not wait for more
            if ending is not None:
                queue.put_nowait((index, ending))

    tasks = [asyncio.create_task(pump(index, job)) for index, job in enumerate(jobs)]
    try:
        left = len(jobs)
        while left:
            index, found = await queue.get()
            if isinstance(found, ServingError):
                raise found
            left -= isinstance(found, Finished)
            yield index, found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def best_first(sequences: Sequence[Generated]) -> list[Generated]:
    """`best_of`: the highest mean log-probability first, as LoRAX chooses."""

    def mean(sequence: Generated) -> float:
        found = [out.logprob for out in sequence[1]]
        return sum(found) / max(1, len(found))

    return sorted(sequences, key=mean, reverse=True)
