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
from urllib.parse import urlsplit

from router.connection import Connection
from router.connection import Header as Header  # everybody's name for it is of this module
from router.errors import BackendError, ConnectFailed, TimedOut

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
    _connection: Connection
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


class Pool:
    """Connections to one origin. Belongs to the event loop that it was made in."""

    def __init__(self, origin: Origin, tls: ssl.SSLContext | None = None) -> None:
        self.origin = origin
        self.loop = asyncio.get_running_loop()
        self._tls = (tls or ssl.create_default_context()) if origin.tls else None
        self._host_line = b" HTTP/1.1\r\nhost: " + origin.host_header + b"\r\n"
        self._idle: deque[Connection] = deque()

    def put(self, connection: Connection) -> None:
        """Take back a connection whose reply is whole."""
        connection.idle_since = self.loop.time()
        self._idle.append(connection)

    def close(self) -> None:
        """Close idle connections; those in use close when their reply is done."""
        while self._idle:
            self._idle.pop().abort()

    def _reuse(self) -> Connection | None:
        now = self.loop.time()
        while self._idle:
            connection = self._idle.pop()  # the one used last: the others grow old and go
            if connection.is_usable(now):
                return connection
            connection.abort()
        return None

    async def _connect(self, timeout_seconds: float) -> Connection:
        name = self.origin.name
        try:
            async with asyncio.timeout(timeout_seconds):
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self),
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
        connection: Connection,
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
