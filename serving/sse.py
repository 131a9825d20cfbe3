"""Server-sent events as LoRAX and OpenAI frame them: one `data:` line an event, comment lines to keep the way open."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"
"""Ends an OpenAI stream that did not fail; never sent on a native one, whose clients would parse it."""

KEEP_ALIVE = b":\n\n"


def event(body: Any) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


async def kept_alive(
    events: AsyncGenerator[bytes, None], interval_seconds: float = 15.0
) -> AsyncGenerator[bytes]:
    """The events, with a comment whenever none came for `interval_seconds`; closing this closes `events`."""
    pending: asyncio.Task[bytes] | None = None
    try:
        while True:
            pending = asyncio.ensure_future(anext(events))
            while not (await asyncio.wait({pending}, timeout=interval_seconds))[0]:
                yield KEEP_ALIVE
            try:
                item = pending.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        if pending is not None and not pending.done():
            pending.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await pending
        await events.aclose()
