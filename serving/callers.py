"""A caller's generation that waits or runs, and the way of its tokens from the engine's thread to its caller's event loop."""

import asyncio
import contextlib
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field

from serving.engine import Emitted, Failed, Row
from serving.errors import ServingError
from serving.generation import Finished, Job, TokenOut
from serving.registry import AdapterRef

Item = TokenOut | Finished


@dataclass(slots=True, eq=False)
class Request:
    """One caller's generation; `row` is set once it has joined the batch."""

    job: Job
    ref: AdapterRef | None
    loop: asyncio.AbstractEventLoop
    items: "asyncio.Queue[Item | ServingError]"
    queued_at: float
    row: Row | None = None
    is_cancelled: bool = False
    held: list[TokenOut] = field(default_factory=list)
    """Tokens of a job that wants them at once, until its end."""

    def put(self, item: Item | ServingError) -> None:
        """Hand an item to the caller's loop; a loop that is gone wants none."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.items.put_nowait, item)


def deliver(given: Sequence[tuple[Request, Item | ServingError]]) -> None:
    """In the callers' loop: what a step gave them."""
    for request, item in given:
        request.items.put_nowait(item)


def hand_over(emitted: Sequence[Emitted | Failed], running: MutableMapping[Row, Request]) -> None:
    """What a step gave, to its callers; who is at the end is no longer running.

    One wake-up of their loop a step, not one a token.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Request, Item | ServingError]]] = {}
    for item in emitted:
        request = running[item.row]
        if isinstance(item, Failed) or item.finished is not None:
            del running[item.row]
        if isinstance(item, Emitted) and item.finished is None and request.job.at_once:
            request.held.append(item.token)
            continue
        given = by_loop.setdefault(request.loop, [])
        if isinstance(item, Failed):
            given.append((request, item.error))
            continue
        given += [(request, token) for token in (*request.held, item.token)]
        if item.finished is not None:
            given.append((request, item.finished))
    for loop, given in by_loop.items():
        with contextlib.suppress(RuntimeError):  # a loop that is gone wants none
            loop.call_soon_threadsafe(deliver, given)
