"""Closed-loop load on an OpenAI-compatible server at a loopback address: so many callers, each waiting for its answer.

One asyncio task a caller, each with its own kept-alive connection; models are taken in turn. Standard library only.
Tokens are counted from the server's own `usage`. A request that lies partly in the window counts for the part of its time that
lies in it: a window shorter than some requests is then neither flattered nor robbed by where their ends fall.
"""

import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.engine.work import Kind, body

RAMP_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Done:
    """One answered request; times in seconds of `time.perf_counter`."""

    ended_at: float
    seconds: float
    prompt_tokens: int
    output_tokens: int

    def share(self, start: float, stop: float) -> float:
        """The part of its time that lies between two moments, 0 to 1."""
        inside = min(stop, self.ended_at) - max(start, self.ended_at - self.seconds)
        return max(0.0, inside) / self.seconds


@dataclass(frozen=True, slots=True)
class Measured:
    """What a window of load saw."""

    requests_per_second: float
    tokens_per_second: float
    p50_seconds: float
    p95_seconds: float
    prompt_tokens: float
    output_tokens: float
    requests: float
    """In the window; those at its edges with their part."""
    errors: int
    first_error: str = ""


class Connection:
    """Just enough HTTP/1.1: keep-alive, bodies with a length or in chunks."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._used_at = 0.0

    async def post(self, path: str, data: bytes) -> tuple[int, bytes]:
        """Status and body. A connection that was idle for long is not used again: servers close such after five seconds."""
        if time.monotonic() - self._used_at > 3:
            self.close()
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        if fields.get("transfer-encoding", "").lower() == "chunked":
            parts = []
            while size := int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16):
                parts.append((await self._reader.readexactly(size + 2))[:-2])
            await self._reader.readexactly(2)
            data = b"".join(parts)
        else:
            data = await self._reader.readexactly(int(fields.get("content-length", 0)))
        self._used_at = time.monotonic()
        return int(lines[0].split()[1]), data

    def close(self) -> None:
        """The next request opens a new connection."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


async def ask(connection: Connection, data: bytes, timeout_seconds: float = 120.0) -> Done:
    """One chat request.

    Raises:
        RuntimeError: any status but 200, with the body's beginning.
    """
    began = time.perf_counter()
    status, raw = await asyncio.wait_for(
        connection.post("/v1/chat/completions", data), timeout_seconds
    )
    if status != 200:
        raise RuntimeError(f"HTTP {status}: {raw[:200]!r}")
    usage = json.loads(raw)["usage"]
    ended = time.perf_counter()
    return Done(ended, ended - began, usage["prompt_tokens"], usage["completion_tokens"])


async def _window(
    port: int, kind: Kind, models: Sequence[str], callers: int, seconds: float, numbers: Iterator[int], seed: str
) -> Measured:  # fmt: skip
    done: list[Done] = []
    errors: list[str] = []
    start = time.perf_counter() + RAMP_SECONDS
    stop = start + seconds

    async def caller() -> None:
        connection = Connection(port)
        while time.perf_counter() < stop and len(errors) < 20:
            number = next(numbers)
            try:
                data = body(kind, models[number % len(models)], number, seed)
                done.append(await ask(connection, data))
            except (OSError, RuntimeError, TimeoutError, EOFError) as why:
                errors.append(f"{type(why).__name__}: {why}")
                connection.close()
        connection.close()

    await asyncio.gather(*(caller() for _ in range(callers)))
    shares = [(one, share) for one in done if (share := one.share(start, stop)) > 0]
    num = sum(share for _, share in shares)
    times = sorted(one.seconds for one, _ in shares) or [float("nan")]
    return Measured(
        requests_per_second=num / seconds,
        tokens_per_second=sum(one.output_tokens * share for one, share in shares) / seconds,
        p50_seconds=statistics.median(times),
        p95_seconds=times[min(len(times) - 1, int(0.95 * len(times)))],
        prompt_tokens=statistics.fmean([one.prompt_tokens for one, _ in shares] or [0]),
        output_tokens=statistics.fmean([one.output_tokens for one, _ in shares] or [0]),
        requests=num,
        errors=len(errors),
        first_error=errors[0] if errors else "",
    )


def measure(
    port: int, kind: Kind, models: Sequence[str], callers: int, seconds: float, seed: str
) -> Measured:
    """Load a server for so long, after a ramp; requests under way at the end are waited for."""
    numbers = itertools.count()
    return asyncio.run(_window(port, kind, models, callers, seconds, numbers, seed))


def warm(port: int, kind: Kind, models: Sequence[str], seed: str) -> None:
    """Two short requests to each model, eight at a time: every adapter is loaded, what prompts share is stored, every path has run."""
    short = replace(kind, max_tokens=2)

    async def run() -> None:
        places = iter(enumerate(models))

        async def some() -> None:
            connection = Connection(port)
            for index, model in places:
                for turn in range(2):
                    await ask(connection, body(short, model, index + turn * len(models), seed))
            connection.close()

        await asyncio.gather(*(some() for _ in range(8)))

    asyncio.run(run())
