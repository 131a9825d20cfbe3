"""HTTP/1.1 towards backends: pooled keep-alive connections on asyncio and httptools, bytes in and bytes out.

Why our own: through a general client the router spends most of its time in the client (`benchmarks/router`), and such
clients decode, re-order or drop headers that a drop-in proxy must pass. Only what a router needs is here: plain and
TLS connections, timeouts for connecting, the first byte and the whole, streamed bodies with back-pressure both ways.
Knows no JSON and no policy.
"""

import asyncio
import re
import ssl
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

from router.deadline import NEVER, Deadline
from router.errors import BackendError, BadReply, ConnectFailed, TimedOut

Header = tuple[bytes, bytes]
HIGH_WATER = 256 * 1024
"""Bytes of a reply that may wait for a slow caller before the backend's connection is paused."""
IDLE_SECONDS = 30.0
"""Idle connections older than this are not used again: servers close theirs, and a request sent into the closing is lost."""


_LENGTH_LINE = re.compile(rb"^content-length:", re.IGNORECASE | re.MULTILINE)


def header_lines(headers: Iterable[Header]) -> bytes:
    """Headers as they stand in a request's head, line breaks included."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a backend is: scheme, host, port and the path that its URLs begin with."""

    name: str
    host: str
    port: int
    tls: bool
    prefix: bytes

    @classmethod
    def parse(cls, name: str, base_url: str) -> "Origin":
        """The origin of a base URL."""
        parts = urlsplit(base_url)
        tls = parts.scheme == "https"
        return cls(
            name,
            parts.hostname or "",
            parts.port or (443 if tls else 80),
            tls,
            parts.path.rstrip("/").encode(),
        )

    @property
    def host_header(self) -> bytes:
        """Value of the `Host` header."""
        standard = 443 if self.tls else 80
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (host if self.port == standard else f"{host}:{self.port}").encode()


@dataclass(slots=True)
class Reply:
    """The head of a reply, and its body as it comes. `read` takes all of it, `stream` piece by piece."""

    status: int
    headers: list[Header]
    _connection: "_Connection"
    _deadline: float
    _first_deadline: float
    """Until when the body's first byte must be here: servers that send their head at once may still hang."""
    on_end: Callable[[bool | None], None] | None = None
    """Told once whether the body came whole; None when it was left before its end."""

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            BadReply: the connection broke in the middle.
            TimedOut: it took longer than the total.
        """
        connection, pieces, is_whole = self._connection, [], None
        try:
            while True:
                piece = connection.take()
                if piece is not None:
                    pieces.append(piece)
                elif connection.finished:
                    is_whole = True
                    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
                else:
                    await self._more(bool(pieces))
        except BackendError:
            is_whole = False
            raise
        finally:
            self._end(is_whole)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Pieces of the body as they arrive. Leaving early closes the connection, which cancels the backend's work."""
        connection, has_begun, is_whole = self._connection, False, None
        try:
            while True:
                piece = connection.take()
                if piece is None:
                    if connection.finished:
                        is_whole = True
                        return
                    await self._more(has_begun)
                    continue
                has_begun = True
                yield piece
        except BackendError:
            is_whole = False
            raise
        finally:
            self._end(is_whole)

    async def _more(self, has_begun: bool) -> None:
        """Until more of the body is here."""
        if has_begun:
            await self._connection.wait(self._deadline, "no whole reply in time")
        else:
            await self._connection.wait(self._first_deadline, "no first byte of the body in time")

    def _end(self, is_whole: bool | None) -> None:
        self._connection.release()
        told, self.on_end = self.on_end, None
        if told is not None:
            told(is_whole)

    def close(self) -> None:
        """Give up what is left of the body; nothing when nothing is left."""
        self._end(None)

    def header(self, name: bytes) -> bytes | None:
        """The first header of that name (lower case)."""
        return next((value for key, value in self.headers if key.lower() == name), None)


class _Connection(asyncio.Protocol):
    """One connection. httptools calls `on_*`; a reader waits on a future and takes pieces from a queue."""

    def __init__(self, pool: "Pool") -> None:
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


class Pool:
    """Connections to one origin. Belongs to the event loop that it was made in."""

    def __init__(self, origin: Origin, tls: ssl.SSLContext | None = None) -> None:
        self.origin = origin
        self.loop = asyncio.get_running_loop()
        self._tls = (tls or ssl.create_default_context()) if origin.tls else None
        self._host_line = b" HTTP/1.1\r\nhost: " + origin.host_header + b"\r\n"
        self._idle: deque[_Connection] = deque()

    def put(self, connection: _Connection) -> None:
        """Take back a connection whose reply is whole."""
        connection.idle_since = self.loop.time()
        self._idle.append(connection)

    def close(self) -> None:
        """Close idle connections; those in use close when their reply is done."""
        while self._idle:
            self._idle.pop().abort()

    def _reuse(self) -> _Connection | None:
        now = self.loop.time()
        while self._idle:
            connection = self._idle.pop()  # the one used last: the others grow old and go
            if connection.is_usable(now):
                return connection
            connection.abort()
        return None

    async def _connect(self, timeout_seconds: float) -> _Connection:
        name = self.origin.name
        try:
            async with asyncio.timeout(timeout_seconds):
                _, connection = await self.loop.create_connection(
                    lambda: _Connection(self),
                    self.origin.host,
                    self.origin.port,
                    ssl=self._tls,
                    server_hostname=self.origin.host if self._tls else None,
                )
        except TimeoutError as why:
            raise ConnectFailed(name, f"no connection within {timeout_seconds:g} s") from why
        except ssl.SSLError as why:
            raise ConnectFailed(name, f"TLS: {why.reason or why}") from why
        except OSError as why:
            at = f"{self.origin.host}:{self.origin.port}"
            raise ConnectFailed(name, f"cannot connect to {at}: {why.strerror or why}") from why
        return connection

    async def request(
        self,
        method: bytes,
        path: bytes,
        headers: Sequence[Header] | bytes,
        body: bytes | AsyncIterable[bytes] = b"",
        *,
        connect_seconds: float = 2.0,
        first_byte_seconds: float = 20.0,
        total_seconds: float = 120.0,
    ) -> Reply:
        """Send a request; returns when the reply's head is there.

        Args:
            path: below the origin's prefix, query included.
            headers: passed as they are, or as `header_lines` wrote them; `host` and the body's framing are ours.
            body: whole, or in pieces (then chunked unless `content-length` is among the headers).

        Raises:
            ConnectFailed, TimedOut, BadReply: nothing of an answer came; none of them hides an error status.
        """
        deadline = self.loop.time() + total_seconds
        connection = self._reuse() or await self._connect(connect_seconds)
        connection.begin()
        try:
            if isinstance(body, bytes):
                connection.write(self._head(method, path, headers, len(body)) + body)
            else:
                try:
                    async with asyncio.timeout_at(deadline):
                        await self._send_pieces(connection, method, path, headers, body)
                except TimeoutError as why:
                    late = f"the request was not taken within {total_seconds:g} s"
                    raise TimedOut(self.origin.name, late) from why
            first = min(deadline, self.loop.time() + first_byte_seconds)
            while not connection.head_complete:
                await connection.wait(first, f"no reply within {first_byte_seconds:g} s")
        except (
            BaseException
        ):  # cancellation too: a connection with a request under way is of no further use
            connection.release()
            raise
        return Reply(connection.status, connection.headers, connection, deadline, first)

    def _head(
        self, method: bytes, path: bytes, headers: Sequence[Header] | bytes, length: int | None
    ) -> bytes:
        lines = headers if isinstance(headers, bytes) else header_lines(headers)
        framing = b""
        if length or (length == 0 and method not in (b"GET", b"HEAD", b"DELETE", b"OPTIONS")):
            framing = b"content-length: %d\r\n" % length
        return b"%b %b%b%b%b%b\r\n" % (
            method, self.origin.prefix, path, self._host_line, lines, framing,
        )  # fmt: skip

    async def _send_pieces(
        self,
        connection: _Connection,
        method: bytes,
        path: bytes,
        headers: Sequence[Header] | bytes,
        body: AsyncIterable[bytes],
    ) -> None:
        lines = headers if isinstance(headers, bytes) else header_lines(headers)
        chunked = not _LENGTH_LINE.search(lines)
        if chunked:
            lines += b"transfer-encoding: chunked\r\n"
        connection.write(self._head(method, path, lines, None))
        async for piece in body:
            if piece:
                framed = b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
                connection.write(framed)
                if not await connection.drain():
                    return
        if chunked:
            connection.write(b"0\r\n\r\n")
