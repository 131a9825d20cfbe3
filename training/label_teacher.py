"""Asking a teacher over the OpenAI API: so many requests at once, patient where it asks for patience, never over the budget.

Every answer goes into the cache before it counts. A request's greatest possible cost is set aside before it is sent, so
the sum of what was paid and what is under way never exceeds the cap.
"""

import asyncio
import datetime
import email.utils
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from router.difficulty import estimated_tokens
from router.tool_calls import OPENING, read, written
from training.errors import ConfigError
from training.label import Job, cost_of, most_cost, prompt_tokens
from training.label_cache import Cache, Reply

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that may go away by themselves."""
FATAL = frozenset({401, 403})
"""Statuses that every further request would get too."""
MOST_TRIES = 6
MOST_WAITS = 200
"""Times that one request lets itself be put off by Retry-After: a teacher that paces us has not failed."""
LONGEST_WAIT_SECONDS = 300.0
Sleep = Callable[[float], Awaitable[None]]


class Refused(Exception):
    """A request that got no answer, for good."""


@dataclass(slots=True)
class Budget:
    """Dollars: the cap, what was paid, and what is set aside for requests under way."""

    cap_usd: float
    spent_usd: float = 0.0
    reserved_usd: float = 0.0

    def reserve(self, usd: float) -> bool:
        """Set aside, unless that could exceed the cap."""
        if self.spent_usd + self.reserved_usd + usd > self.cap_usd + 1e-12:
            return False
        self.reserved_usd += usd
        return True

    def settle(self, reserved: float, paid: float) -> None:
        """Put back what was set aside and count what was paid."""
        self.reserved_usd -= reserved
        self.spent_usd += paid


@dataclass(frozen=True, slots=True)
class _Tried:
    """One try: the answer, or what went wrong, whether it may be billed, and whether the teacher only asked to wait."""

    reply: Reply | None = None
    problem: str = ""
    is_billed: bool = False
    is_paced: bool = False


@dataclass(slots=True)
class Asked:
    """What came of a number of jobs. `left` are those that the budget did not reach."""

    answers: list[tuple[Job, Reply]] = field(default_factory=list)
    failed: list[tuple[Job, str]] = field(default_factory=list)
    left: list[Job] = field(default_factory=list)


def retry_after(headers: Mapping[str, str], now: datetime.datetime) -> float | None:
    """Seconds that a reply asks to wait: `retry-after-ms`, or `retry-after` in seconds or as an HTTP date."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        return max(0.0, float(headers["retry-after"]))
    except KeyError:
        return None
    except ValueError:
        pass
    try:
        at = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or datetime.UTC) - now).total_seconds())


class Asker:
    """One run's way to its teachers."""

    def __init__(
        self, client: httpx.AsyncClient, cache: Cache, budget: Budget, *, concurrency: int = 8, sleep: Sleep = asyncio.sleep
    ) -> None:  # fmt: skip
        self._client = client
        self._cache = cache
        self._budget = budget
        self._concurrency = concurrency
        self._sleep = sleep
        self._not_before = 0.0
        self._settled = asyncio.Event()
        self._in_flight = 0

    async def ask(
        self, jobs: Sequence[Job], tell: Callable[[int, int], None] | None = None
    ) -> Asked:
        """Ask all, equal requests once; what the cache knows is not asked. Ends early where the budget ends.

        Raises:
            ConfigError: the teacher does not let us in.
        """
        unique = {job.hash: job for job in jobs}
        results: dict[str, Reply | str] = {}
        queue = iter(unique.values())
        workers = [
            self._work(queue, results, len(unique), tell)
            for _ in range(min(self._concurrency, len(unique)))
        ]
        fatal: Sequence[BaseException] = ()
        try:
            async with asyncio.TaskGroup() as group:
                for worker in workers:
                    group.create_task(worker)
        except* ConfigError as why:
            fatal = why.exceptions
        if fatal:
            raise fatal[0]
        found = Asked()
        for job in jobs:
            result = results.get(job.hash)
            if result is None:
                found.left.append(job)
            elif isinstance(result, str):
                found.failed.append((job, result))
            else:
                found.answers.append((job, result))
        return found

    async def _work(
        self, queue: Iterator[Job], results: dict[str, Reply | str], total: int,
        tell: Callable[[int, int], None] | None,
    ) -> None:  # fmt: skip
        for job in queue:
            reply = self._cache.find(job.hash)
            if reply is None:
                if not await self._reserve(job):
                    continue
                try:
                    reply = await self._paid(job)
                except Refused as why:
                    results[job.hash] = str(why)
            if reply is not None:
                results[job.hash] = reply
            if tell:
                tell(len(results), total)

    async def _reserve(self, job: Job) -> bool:
        """Money for the request, waiting for those under way where the rest is too little; False when it is spent."""
        while not self._budget.reserve(most_cost(job)):
            if not self._in_flight:
                return False
            self._settled.clear()
            await self._settled.wait()
        return True

    async def _paid(self, job: Job) -> Reply:
        """The answer, kept and paid for."""
        held, paid = most_cost(job), 0.0
        self._in_flight += 1
        try:
            tries = waits = 0
            while tries < MOST_TRIES and waits < MOST_WAITS:
                tried = await self._try(job, tries)
                tries, waits = tries + (not tried.is_paced), waits + tried.is_paced
                if tried.reply is not None:
                    paid += cost_of(job, tried.reply)
                    self._cache.put(job.hash, tried.reply)
                    return tried.reply
                if tried.is_billed:
                    # The answer was on its way and is probably billed: another try needs money of its own.
                    paid += most_cost(job)
                    if not self._budget.reserve(most_cost(job)):
                        raise Refused(f"{tried.problem}; no money is left for another try")
                    held += most_cost(job)
            raise Refused(f"{tried.problem} ({tries} tries, put off {waits} times)")
        finally:
            self._in_flight -= 1
            self._budget.settle(held, paid)
            self._settled.set()

    async def _try(self, job: Job, tries: int) -> _Tried:
        """One try, the `tries`-th after the first; after a failure it waits as the teacher says, else ever longer.

        Raises:
            Refused: trying again would not help.
            ConfigError: nor would asking anything else.
        """
        await self._sleep(max(0.0, self._not_before - time.monotonic()))
        began = time.monotonic()
        pause = min(30.0, 0.5 * 2**tries) * random.uniform(0.75, 1.25)
        try:
            response = await self._client.post(
                f"{job.teacher.url.rstrip('/')}/chat/completions", json=job.body
            )
        except httpx.TransportError as why:
            await self._sleep(pause)
            is_billed = isinstance(why, httpx.ReadTimeout)
            return _Tried(problem=f"{type(why).__name__}: {why}", is_billed=is_billed)
        if response.status_code == 200:
            return _Tried(_reply(job, response, time.monotonic() - began))
        problem, code = _message(response)
        problem = f"HTTP {response.status_code}: {problem}"
        if response.status_code in FATAL or code == "insufficient_quota":
            raise ConfigError(f"{job.teacher.url}: {problem} (is the key in --api-key-env right?)")
        if response.status_code not in RETRIED:
            raise Refused(problem)
        wait = retry_after(response.headers, datetime.datetime.now(datetime.UTC))
        if wait is None:
            await self._sleep(pause)
        else:
            # The teacher's wish holds for every request, not only for the one that heard it.
            self._not_before = time.monotonic() + min(wait, LONGEST_WAIT_SECONDS)
        return _Tried(problem=problem, is_paced=wait is not None)


def _message(response: httpx.Response) -> tuple[str, str]:
    """What an error reply says, and its code."""
    try:
        error = response.json()["error"]
        if isinstance(error, dict):
            return str(error["message"])[:200], str(error.get("code"))
        return str(error)[:200], ""
    except (ValueError, KeyError, TypeError):
        return response.text[:200], ""


def _written(calls: Any) -> str:
    """A reply's calls as text; one that is none stays readable, and so has not the form."""
    found = read(json.dumps({"tool_calls": calls}))
    return written(found) if found else f"{OPENING}{json.dumps(calls, ensure_ascii=False)}"


def _reply(job: Job, response: httpx.Response, latency_seconds: float) -> Reply:
    try:
        data: Any = response.json()
        choice = data["choices"][0]
        calls = choice["message"].get("tool_calls") if job.teacher.calls_tools else None
        text = _written(calls) if calls else choice["message"]["content"] or ""
        usage = data.get("usage") or {}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as why:
        raise Refused(f"not a chat completion: {response.text[:200]}") from why
    is_estimated = "prompt_tokens" not in usage
    return Reply(
        text, str(choice.get("finish_reason") or ""), str(data.get("model") or job.teacher.model),
        int(usage.get("prompt_tokens") or prompt_tokens(job.body)),
        int(usage.get("completion_tokens") or estimated_tokens(len(text))),
        round(latency_seconds, 4), is_estimated,
    )  # fmt: skip
