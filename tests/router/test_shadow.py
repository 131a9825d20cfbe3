"""Copies begin after the reply, are bounded from the moment they are asked for, and are not lost at the end."""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

import pytest

from router.shadow import START_SECONDS, ShadowSet

P = ParamSpec("P")


def in_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@in_a_loop
async def test_a_copy_begins_a_moment_later_and_others_with_it() -> None:
    shadows, begun = ShadowSet(), list[int]()

    async def work(number: int) -> None:
        begun.append(number)

    shadows.submit(lambda: work(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert begun == []  # the turns after the reply are the caller's
    shadows.submit(lambda: work(2))
    assert len(shadows) == 2
    async with asyncio.timeout(2):
        while len(shadows):
            await asyncio.sleep(START_SECONDS)
    assert begun == [1, 2]


@in_a_loop
async def test_copies_that_wait_count_against_the_bound() -> None:
    shadows = ShadowSet(max_tasks=2)
    for _ in range(2):
        assert shadows.refusal("tickets", None, 0.0) is None
        shadows.submit(lambda: asyncio.sleep(0))
    assert shadows.refusal("tickets", None, 0.0) == "load"
    await shadows.drain(1.0)
    assert shadows.refusal("tickets", None, 0.0) is None


@in_a_loop
async def test_draining_begins_what_waits_and_ends_what_hangs() -> None:
    shadows, ended = ShadowSet(), list[str]()

    async def quick() -> None:
        ended.append("quick")

    async def hangs() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        ended.append("cancelled")

    shadows.submit(quick)
    shadows.submit(hangs)
    await shadows.drain(0.05)
    await asyncio.sleep(0)
    assert ended == ["quick", "cancelled"]


@in_a_loop
async def test_what_a_copy_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    shadows = ShadowSet()

    async def fails() -> None:
        raise RuntimeError("of the copy")

    shadows.submit(fails)
    await shadows.drain(1.0)
    await asyncio.sleep(0)
    assert "a shadow failed" in caplog.text
