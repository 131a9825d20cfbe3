"""A step waits for callers who were answered a moment ago: for as many, not for long, and not at others' cost."""

import asyncio
import time
from typing import Any

import pytest

from serving import returning
from serving import worker as worker_module
from serving.callers import hand_over
from serving.generation import Step
from serving.returning import MOST_SECONDS, SHARE, Returning
from serving.worker import _Call
from tests.serving.place import Place, job, whole


def test_as_many_are_waited_for_as_were_answered() -> None:
    waiting = Returning()
    assert waiting.seconds_left(0.0) == 0
    waiting.answered([10.0, 10.0], num_left=0, num_waiting=0, now=5.0)
    assert waiting.seconds_left(5.0) == pytest.approx(MOST_SECONDS)
    waiting.came(5.0)
    assert waiting.seconds_left(5.0) == pytest.approx(MOST_SECONDS)
    waiting.came(5.0)
    assert waiting.seconds_left(5.0) == 0


def test_the_wait_ends_and_is_a_small_part_of_what_the_answers_took() -> None:
    waiting = Returning()
    waiting.answered([0.032], num_left=0, num_waiting=0, now=5.0)
    assert waiting.seconds_left(5.0) == pytest.approx(0.032 * SHARE)
    assert waiting.seconds_left(5.0 + 0.032 * SHARE) == 0


@pytest.mark.parametrize(("num_left", "num_waiting"), [(2, 0), (3, 0), (0, 2), (0, 9)])
def test_nobody_is_made_to_wait_for_fewer(num_left: int, num_waiting: int) -> None:
    waiting = Returning()
    waiting.answered([10.0, 10.0], num_left, num_waiting, now=5.0)
    assert waiting.seconds_left(5.0) == 0


def in_a_loop(waiting: Returning, times: int, *, came_after: float) -> None:
    """Callers that are answered two at a time, of four, and ask again so many seconds later."""
    for number in range(times):
        waiting.answered([10.0, 10.0], num_left=2, num_waiting=0, now=float(number))
        for _ in range(2):
            waiting.came(number + came_after)


def test_rows_that_go_on_wait_for_callers_who_are_known_to_return() -> None:
    waiting = Returning()
    in_a_loop(waiting, 30, came_after=MOST_SECONDS / 2)
    waiting.answered([10.0, 10.0], num_left=6, num_waiting=0, now=100.0)
    assert waiting.seconds_left(100.0) == pytest.approx(MOST_SECONDS)
    waiting.came(100.001)
    waiting.came(100.002)
    assert waiting.seconds_left(100.002) == 0


@pytest.mark.parametrize("came_after", [MOST_SECONDS * 2, 0.5])
def test_rows_that_go_on_do_not_wait_for_callers_who_come_late(came_after: float) -> None:
    waiting = Returning()
    in_a_loop(waiting, 30, came_after=came_after)
    waiting.answered([10.0, 10.0], num_left=2, num_waiting=0, now=100.0)
    assert waiting.seconds_left(100.0) == 0


def test_some_waits_in_vain_end_the_waiting_of_rows_that_go_on() -> None:
    waiting = Returning()
    in_a_loop(waiting, 30, came_after=0.001)
    waits = []
    for number in range(100, 110):
        waiting.answered([10.0], num_left=7, num_waiting=0, now=float(number))
        waits.append(waiting.seconds_left(float(number)) > 0)  # nobody comes
    assert waits == [True] * waits.index(False) + [False] * (10 - waits.index(False))
    assert 1 <= waits.index(False) <= 6


def test_a_step_without_an_end_waits_for_nobody() -> None:
    waiting = Returning()
    waiting.answered([10.0], num_left=0, num_waiting=0, now=5.0)
    waiting.answered([], num_left=1, num_waiting=0, now=5.0)
    assert waiting.seconds_left(5.0) == 0


def test_callers_that_ended_together_begin_together(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(returning, "MOST_SECONDS", 5.0)
    monkeypatch.setattr(returning, "SHARE", 1e6)  # tiny steps: the wait must not depend on theirs

    async def run() -> list[Step]:
        worker = place.worker()
        steps: list[Step] = []
        worker.on_step = steps.append
        await worker.start()
        for number in range(3):
            await worker.load(f"a{number}/1")
        worker._call(_Call(lambda: time.sleep(0.3)))  # all three are there when it is over

        async def caller(number: int, texts: list[str]) -> None:
            for text in texts:
                await whole(worker, job(place, text, f"a{number}/1", 4, ignore_eos=True))
                await asyncio.sleep(0.002 * number)  # one asks again later than the other

        await asyncio.gather(*(caller(i, ["hello", "refund", "world"]) for i in range(3)))
        await worker.stop()
        return steps

    steps = asyncio.run(run())
    assert [step.num_prompts for step in steps if step.num_prompts] == [3, 3, 3]


def test_who_asks_again_while_answers_go_out_is_not_waited_for_once_more(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(returning, "MOST_SECONDS", 5.0)
    monkeypatch.setattr(returning, "SHARE", 1e6)

    def slow(*given: Any) -> None:
        hand_over(*given)
        time.sleep(0.1)  # as if the callers' loop had the interpreter for so long

    monkeypatch.setattr(worker_module, "hand_over", slow)

    async def run() -> float:
        worker = place.worker()
        await worker.start()
        worker._call(_Call(lambda: time.sleep(0.2)))

        async def caller(number: int) -> float:
            await whole(worker, job(place, "hello", None, 1, ignore_eos=True))
            await asyncio.sleep(0.3 * number)  # the first is there again before the step's end
            began = time.perf_counter()
            await whole(worker, job(place, "refund", None, 1, ignore_eos=True))
            return time.perf_counter() - began

        waits = await asyncio.gather(*(caller(number) for number in range(2)))
        await worker.stop()
        return max(waits)

    assert asyncio.run(run()) < 2.5
