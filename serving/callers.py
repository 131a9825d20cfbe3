"""A caller's generation that waits or runs, and the way of its tokens from the engine's thread to its caller's event loop."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.engine import Row
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
