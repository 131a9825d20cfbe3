"""Unseen copies of requests: bounded, in the background, shed first under load, never awaited by a caller."""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

logger = logging.getLogger(__name__)


class ShadowSet:
    """Background tasks, at most `max_tasks` of them; a route may also have a number a minute, shared by all workers."""

    def __init__(self, max_tasks: int = 256, *, workers: int = 1) -> None:
        self._max_tasks = max_tasks
        self._workers = workers
        self._tasks: set[asyncio.Task[None]] = set()
        self._sent_at: dict[str, deque[float]] = {}

    def refusal(self, route: str, max_per_minute: int | None, now: float) -> str | None:
        """Why a copy is not sent now: `load` or `per_minute`; None when it may be, and it is then counted as sent."""
        if len(self._tasks) >= self._max_tasks:
            return "load"
        if max_per_minute is not None:
            sent = self._sent_at.setdefault(route, deque())
            while sent and now - sent[0] > 60.0:
                sent.popleft()
            if len(sent) >= math.ceil(max_per_minute / self._workers):
                return "per_minute"
            sent.append(now)
        return None

    def submit(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` beside everything else; what it raises is logged."""
        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            logger.error("a shadow failed", exc_info=failure)

    def __len__(self) -> int:
        return len(self._tasks)

    async def drain(self, timeout_seconds: float) -> None:
        """Wait for what is under way, then cancel the rest."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_seconds)
        for task in self._tasks:
            task.cancel()
