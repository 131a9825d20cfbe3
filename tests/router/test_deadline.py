"""A deadline rings at its moment, however often that was moved."""

import asyncio
import time

from router.deadline import NEVER, Deadline


def test_it_rings_once_at_the_last_moment_that_was_set() -> None:
    async def run() -> list[float]:
        loop, rung = asyncio.get_running_loop(), list[float]()
        began = time.monotonic()
        deadline = Deadline(loop, lambda: rung.append(time.monotonic() - began))
        for seconds in (5.0, 0.02, 0.05, 0.08):
            deadline.move(loop.time() + seconds)
        await asyncio.sleep(0.15)
        return rung

    (rung,) = asyncio.run(run())
    assert 0.079 <= rung < 0.12


def test_it_is_silent_when_nothing_is_waited_for() -> None:
    async def run() -> tuple[int, int]:
        loop, rung = asyncio.get_running_loop(), []
        one, other = (Deadline(loop, lambda: rung.append(1)) for _ in range(2))
        one.move(loop.time() + 0.01)
        one.at = NEVER
        other.move(loop.time() + 0.01)
        other.stop()
        await asyncio.sleep(0.04)
        silent = len(rung)
        one.move(loop.time() + 0.01)
        await asyncio.sleep(0.04)
        return silent, len(rung)

    assert asyncio.run(run()) == (0, 1)
