"""A caller: sends one chat request and says what it saw, down to a connection that broke off.

Reads raw bytes, so that what the teacher's reply looks like to a client library does not matter.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import httpx

from benchmarks.faults import bodies
from benchmarks.faults.upstream import NOT_JSON, TORN_GZIP

Kind = Literal["whole", "refused", "as-came", "broken", "away", "hung", "wrong"]
"""
whole    status 200 and all of the answer
refused  an error status with a body in OpenAI's form
as-came  status 200 and the bytes that the teacher sent, which are no answer
broken   the connection ended in the middle of the reply
away     no reply at all: no connection, or it closed before a head came
hung     no end of the reply within the bound
wrong    anything else
"""
HUNG_SECONDS = 5.0
"""The student's total, the teacher's total twice, its Retry-After, and one second for a busy machine."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one caller saw. `id` is the router's number of the request, empty when no head came."""

    kind: Kind
    seconds: float
    status: int = 0
    id: str = ""
    served_by: str = ""
    code: str = ""
    """The error's code in OpenAI's form."""


@dataclass(slots=True)
class Callers:
    """Several callers of one router."""

    url: str
    client: httpx.AsyncClient
    hung_seconds: float = HUNG_SECONDS
    outcomes: list[Outcome] = field(default_factory=list)

    @classmethod
    def of(cls, url: str, patience: float = 1.0) -> "Callers":
        """Callers with connections of their own, who wait that many times as long before they call it hung."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        client = httpx.AsyncClient(trust_env=False, timeout=None, limits=limits, verify=False)
        return cls(url, client, patience * HUNG_SECONDS)

    async def ask(
        self, model: str, number: int, *, stream: bool, pause_seconds: float = 0.0
    ) -> Outcome:
        """One request, by a user of that number."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": f"request {number}"}],
            "user": f"user {number}",
            "stream": stream,
        }
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self.hung_seconds):
                found = await self._ask(body, began, stream=stream)
        except TimeoutError:
            found = Outcome("hung", time.perf_counter() - began)
        self.outcomes.append(found)
        return found

    async def _ask(self, body: dict[str, object], began: float, *, stream: bool) -> Outcome:
        def outcome(kind: Kind, reply: httpx.Response | None = None, code: str = "") -> Outcome:
            seconds = time.perf_counter() - began
            if reply is None:
                return Outcome(kind, seconds)
            number = reply.headers.get("x-graduate-request-id", "")
            served_by = reply.headers.get("x-graduate-served-by", "")
            return Outcome(kind, seconds, reply.status_code, number, served_by, code)

        reply = None
        pieces: list[bytes] = []
        try:
            url = f"{self.url}/v1/chat/completions"
            async with self.client.stream("POST", url, json=body) as reply:
                pieces = [piece async for piece in reply.aiter_raw()]
        except httpx.TransportError:
            return outcome("away" if reply is None else "broken", reply)
        data = b"".join(pieces)
        if reply.status_code != 200:
            code = _error_code(data)
            return outcome("wrong" if code is None else "refused", reply, code or "")
        if data in (NOT_JSON, TORN_GZIP):
            return outcome("as-came", reply)
        is_whole = _is_whole_stream(data) if stream else _is_whole_body(data)
        return outcome("whole" if is_whole else "wrong", reply)

    async def load(
        self, models: list[str], clients: int, until: Callable[[], bool], *, stream: bool | None
    ) -> None:
        """Requests without a pause from several clients until the function says so.

        Args:
            stream: None lets every other request stream.
        """
        numbers = itertools.count()

        async def one() -> None:
            while not until():
                number = next(numbers)
                is_stream = number % 2 == 1 if stream is None else stream
                found = await self.ask(models[number % len(models)], number, stream=is_stream)
                if found.kind == "away":  # somebody is being started again: no busy loop
                    await asyncio.sleep(0.02)

        await asyncio.gather(*(one() for _ in range(clients)))


def _error_code(data: bytes) -> str | None:
    """The code of an error in OpenAI's form, None when it has not that form."""
    try:
        error = json.loads(data)["error"]
        if isinstance(error["message"], str) and isinstance(error["type"], str):
            return str(error["code"] or error["type"])
    except (ValueError, LookupError, TypeError):
        pass
    return None


def _is_whole_body(data: bytes) -> bool:
    try:
        return bool(json.loads(data)["choices"][0]["message"]["content"] == bodies.TEXT)
    except (ValueError, LookupError, TypeError):
        return False


def _is_whole_stream(data: bytes) -> bool:
    events = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: ")]
    if not events or events[-1] != b"[DONE]":
        return False
    try:
        deltas = [choice["delta"] for e in events[:-1] for choice in json.loads(e)["choices"]]
    except (ValueError, LookupError, TypeError):
        return False
    return "".join(delta.get("content") or "" for delta in deltas) == bodies.TEXT
