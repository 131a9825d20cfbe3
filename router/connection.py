"""One connection to a backend: a request goes out, the reply's head and pieces are taken as they come.

Used again after a reply that came whole. Knows HTTP's framing; retries, timeouts' lengths and pooling are others'.
"""

import asyncio
from collections import deque
from typing import Protocol, cast

import httptools

from router.deadline import NEVER, Deadline
from router.errors import BackendError, BadReply, ConnectFailed, TimedOut

Header = tuple[bytes, bytes]
HIGH_WATER = 256 * 1024
"""Bytes of a reply that may wait for a slow caller before the backend's connection is paused."""
IDLE_SECONDS = 30.0
"""Idle connections older than this are not used again: servers close theirs, and a request sent into the closing is lost."""


class Named(Protocol):
    """Where a connection leads."""

    @property
    def name(self) -> str:
        """The backend's name, for messages."""


class ConnectionPool(Protocol):
    """Whom a connection belongs to."""

    loop: asyncio.AbstractEventLoop

    @property
    def origin(self) -> Named:
        """Where its connections lead."""

    def put(self, connection: "Connection") -> None:
        """Take back a connection whose reply is whole."""


class Connection(asyncio.Protocol):
    """One connection. httptools calls `on_*`; a reader waits on a future and takes pieces from a queue."""

    def __init__(self, pool: "ConnectionPool") -> None:
        self._pool = pool
        self._loop = pool.loop
        self._transport: asyncio.Transport | None = None
        # One for all replies: a connection is used again only after a reply that leaves the parser at its beginning.
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = Deadline(pool.loop, self._expire)
        self._late = ""
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._paused = False
        self._failure: BackendError | None = None
        self._can_write: asyncio.Future[None] | None = None
        self._released = True
        self._keep_alive = False
        self._sent_whole = True
        self.closed = False
        self.finished = False
        self.head_complete = False
        self.headers: list[Header] = []
        self.status = 0
        self.idle_since = 0.0

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have asyncio's methods without being its subclasses.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._released:
            self._fail(BadReply(self._pool.origin.name, "bytes without a request"))
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as why:
            self._fail(BadReply(self._pool.origin.name, f"not HTTP: {why}"))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._deadline.stop()
        if self._can_write is not None and not self._can_write.done():
            self._can_write.set_result(None)
        if not self.finished and not self._released:
            until_close = self.head_complete and self._ends_with_connection()
            if until_close and exc is None:
                self.finished = True
            else:
                kind = BadReply if self.head_complete else ConnectFailed
                self._failure = self._failure or kind(
                    self._pool.origin.name, f"connection closed early{f': {exc}' if exc else ''}"
                )
            self._wake()

    def pause_writing(self) -> None:
        self._can_write = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._can_write is not None and not self._can_write.done():
            self._can_write.set_result(None)
        self._can_write = None

    # what httptools calls

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.finished:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if (
            self.finished
        ):  # a second reply to one request: nobody asked, and nobody will be given it
            self._keep_alive = False
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self.headers = []
            return
        self.status = status
        self.head_complete = True
        if self._can_write is not None and not self._can_write.done():
            self._can_write.set_result(None)  # answered before it had the whole request
        self._wake()

    def on_body(self, body: bytes) -> None:
        if self.finished:
            return
        self._pieces.append(body)
        self._held += len(body)
        if self._held > HIGH_WATER and not self._paused and self._transport is not None:
            self._transport.pause_reading()
            self._paused = True
        self._wake()

    def on_message_complete(self) -> None:
        if not self.head_complete or self.finished:  # the end of a 1xx reply, or of one too many
            return
        self.finished = True
        # Asked here and not later: the parser forgets the reply's framing with the end of it.
        self._keep_alive = self._parser.should_keep_alive()
        self._wake()

    # what the pool and the reply call

    def begin(self) -> None:
        """Get ready for the next request; the reply before was taken whole."""
        self._failure = None
        self._released = False
        self.finished = self.head_complete = self._keep_alive = False
        self._sent_whole = True
        self.headers = []
        self.status = 0

    def write(self, data: bytes) -> None:
        """Send bytes."""
        assert self._transport is not None
        self._transport.write(data)

    async def drain(self) -> bool:
        """Wait until the backend takes more; False when it wants no more: it has answered, or is gone."""
        if self._can_write is not None:
            await self._can_write
        self._sent_whole = not (self.closed or self.head_complete)
        return self._sent_whole

    def take(self) -> bytes | None:
        """The next piece of the body, None when none is there; what failed is raised after the pieces before it."""
        if self._pieces:
            piece = self._pieces.popleft()
            self._held -= len(piece)
            if self._paused and self._held < HIGH_WATER // 2 and self._transport is not None:
                self._transport.resume_reading()
                self._paused = False
            return piece
        if self._failure is not None:
            raise self._failure
        return None

    async def wait(self, deadline: float, late: str) -> None:
        """Until something arrives.

        Raises:
            TimedOut: nothing did until the deadline (loop time).
        """
        if self._failure is not None and not self._pieces:
            raise self._failure
        self._waiter = self._loop.create_future()
        self._late = late
        self._deadline.move(deadline)
        try:
            await self._waiter
        finally:
            self._deadline.at = NEVER
            self._waiter = None
        if self._failure is not None and not self._pieces:
            raise self._failure

    def release(self) -> None:
        """Back into the pool when the reply is whole, closed otherwise."""
        if self._released:
            return
        self._released = True
        keep = (
            self.finished
            and not self.closed
            and not self._pieces
            and self._keep_alive
            and self._sent_whole
        )
        if keep:
            self._pool.put(self)
        elif self._transport is not None:
            self._transport.abort()

    def is_usable(self, now: float) -> bool:
        """Whether an idle connection may take another request."""
        closing = self._transport is None or self._transport.is_closing()
        return not self.closed and not closing and now - self.idle_since < IDLE_SECONDS

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _ends_with_connection(self) -> bool:
        names = {name.lower() for name, _ in self.headers}
        return b"content-length" not in names and b"transfer-encoding" not in names

    def _expire(self) -> None:
        self._fail(TimedOut(self._pool.origin.name, self._late))

    def _fail(self, failure: BackendError) -> None:
        self._failure = self._failure or failure
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
