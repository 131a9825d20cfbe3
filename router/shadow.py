"""Unseen copies of requests: bounded, in the background, shed first under load, never awaited by a caller.

They begin a moment after the reply: its caller's next request often comes at once, and should not find the event loop
busy with a copy of the last.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

logger = logging.getLogger(__name__)

START_SECONDS = 0.002
"""From a reply to its copies. One timer starts all that wait: it is cheaper than a turn of the event loop for each."""
Work = Callable[[], Coroutine[Any, Any, None]]


class ShadowSet:
    """Background tasks, at most `max_tasks` of them; a route may also have a number a minute, shared by all workers."""

    def __init__(self, max_tasks: int = 256, *, workers: int = 1) -> None:
        self._max_tasks = max_tasks
        self._workers = workers
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: list[Work] = []
        self._sent_at: dict[str, deque[float]] = {}

    def refusal(self, route: str, max_per_minute: int | None, now: float) -> str | None:
        """Why a copy is not sent now: `load` or `per_minute`; None when it may be, and it is then counted as sent."""
        if len(self) >= self._max_tasks:
            return "load"
        if max_per_minute is not None:
            sent = self._sent_at.setdefault(route, deque())
            while sent and now - sent[0] > 60.0:
                sent.popleft()
            if len(sent) >= math.ceil(max_per_minute / self._workers):
                return "per_minute"
            sent.append(now)
        return None

    def submit(self, work: Work) -> None:
        """Run `work` beside everything else, soon; what it raises is logged."""
        self._waiting.append(work)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_later(START_SECONDS, self._start)

    def _start(self) -> None:
        """Begin all that waits."""
        loop = asyncio.get_running_loop()
        waiting, self._waiting = self._waiting, []
        for work in waiting:
            task = loop.create_task(work())
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            logger.error("a shadow failed", exc_info=failure)

    def __len__(self) -> int:
        return len(self._tasks) + len(self._waiting)

    async def drain(self, timeout_seconds: float) -> None:
        """Wait for what is under way, then cancel the rest."""
        self._start()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_seconds)
        for task in self._tasks:
            task.cancel()
