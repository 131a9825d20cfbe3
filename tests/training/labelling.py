"""What the tests of labelling share: rows, the real replay teacher in process, and how it is asked."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette

from router.answer_spec import AnswerSpec
from router.policy import Price
from serving.replay import ReplaySettings, Rows
from serving.replay_app import create_replay_app
from tests.words import sentence
from training.build import Row
from training.label import Teacher
from training.label_cache import Cache
from training.label_teacher import Asker, Budget

SPEC = AnswerSpec(kind="label", labels=("refund", "order"))
URL = "http://teacher/v1"
TEACHER = Teacher(URL, "gpt", Price(input=10, output=30), max_tokens=10)


def rows(count: int = 40) -> list[Row]:
    found = []
    for n in range(count):
        text, gold = sentence(n)
        found.append(Row(f"r{n}", ({"role": "user", "content": text},), None, gold, "file:x"))
    return found


def replay(wrong: int = 0, form: str = "{}", **settings: Any) -> Starlette:
    """A replay of the gold answers, the first `wrong` of them the other label, all written as `form`."""
    answers = {}
    for n in range(40):
        text, gold = sentence(n)
        said = {"refund": "order", "order": "refund"}[gold] if n < wrong else gold
        answers[text] = form.replace("{}", said)
    lengths = tuple(sorted({len(t) for t in answers}, reverse=True))
    return create_replay_app(
        Rows(answers, lengths), ReplaySettings(latency_seconds=0.0, **settings)
    )


class Sleeps:
    """A clock that only notes how long was slept."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        if seconds:
            self.seconds.append(seconds)
        await asyncio.sleep(0)


def with_asker(
    app: Any, cache: Path, budget: Budget, use: Callable[[Asker], Awaitable[Any]], sleep: Any = None, concurrency: int = 4
) -> Any:  # fmt: skip
    async def run() -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            kept = Cache(cache)
            try:
                return await use(
                    Asker(client, kept, budget, concurrency=concurrency, sleep=sleep or Sleeps())
                )
            finally:
                kept.close()

    return asyncio.run(run())


def ask(app: Any, tmp_path: Path, jobs: Any, budget: Budget | None = None, **rest: Any) -> Any:
    return with_asker(
        app, tmp_path / "cache.db", budget or Budget(1.0), lambda a: a.ask(jobs), **rest
    )
