"""An upstream that misbehaves in one way until it is healed: one port for each fault, bytes written by hand.

No HTTP server is used, because none can be told to send half a body. Knows the two dialects and no policy.
"""

import asyncio
import contextlib
import gzip
import socket
from dataclasses import dataclass, field
from typing import Literal, get_args

from benchmarks.faults import bodies

Fault = Literal[
    "none", "slow", "silent", "trickle", "refused", "hang", "429", "500", "cut", "not-http", "not-json", "gzip",
]  # fmt: skip
"""
slow      no byte until long after `first_token`
silent    the head at once, then nothing for longer than `total`
trickle   the first piece at once, the last one long after `total`
refused   connection refused
hang      the connection is never accepted: its handshake hangs
429, 500  that status, 429 with `Retry-After: 1`
cut       the connection closes in mid-body or mid-stream
not-http  bytes that are no HTTP
not-json  status 200 and a page of HTML
gzip      status 200 and a gzip body that ends too early
"""
FAULTS: tuple[Fault, ...] = get_args(Fault)
RETRY_AFTER_SECONDS = 1
NOT_HTTP = b"SSH-2.0-OpenSSH_9.6\r\nwhat follows is no HTTP either\r\n\r\n"
NOT_JSON = b"<html><body>Welcome to the captive portal</body></html>"
TORN_GZIP = gzip.compress(bodies.whole("openai"), mtime=0)[:-20]
LONG_SECONDS = 30.0
PIECES_A_SECOND = 6


@dataclass(slots=True)
class FaultServer:
    """One port with one fault. Belongs to the event loop that it is started in."""

    fault: Fault
    delay_seconds: float = 0.0
    """Before each whole reply; the fault itself is not delayed."""
    is_healed: bool = False
    port: int = 0
    num_requests: int = 0
    _sock: socket.socket | None = None
    _fillers: list[socket.socket] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        """Take a port and begin to misbehave on it."""
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind(("127.0.0.1", 0))
        self.port = self._sock.getsockname()[1]
        if self.fault == "hang":
            self._fill_backlog(self._sock)
        elif self.fault != "refused":  # a port that is bound and not listened on refuses
            await self._listen()

    async def heal(self) -> None:
        """Answer well from now on."""
        self.is_healed = True
        if self._server is None:
            await self._listen()
        for filler in self._fillers:
            filler.close()

    async def stop(self) -> None:
        """Close the port and what is connected to it."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in (*self._fillers, self._sock):
            if one is not None:
                one.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accepted, sock=self._sock, backlog=512)

    def _fill_backlog(self, sock: socket.socket) -> None:
        """Connect until a handshake hangs: the kernel drops what comes above a full backlog."""
        sock.listen(0)
        while True:
            filler = socket.socket()
            filler.settimeout(0.2)
            self._fillers.append(filler)
            try:
                filler.connect(sock.getsockname())
            except TimeoutError:
                return

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = (OSError, asyncio.IncompleteReadError)  # the router may leave whenever it likes
        try:
            with contextlib.suppress(*gone):
                while await self._one(reader, writer):
                    await writer.drain()
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read a request and reply to it; False when the connection ends with that."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
        body = await reader.readexactly(int(length or 0))
        self.num_requests += 1
        path = head.split(b" ", 2)[1]
        dialect: bodies.Dialect = "lorax" if path.startswith(b"/generate") else "openai"
        is_stream = path == b"/generate_stream" or b'"stream":true' in body.replace(b" ", b"")
        fault = "none" if self.is_healed else self.fault
        if fault in ("slow", "silent", "trickle"):
            await _late(writer, fault, dialect, is_stream=is_stream)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), LONG_SECONDS)
            return False
        if fault == "none":
            await asyncio.sleep(self.delay_seconds)
        writer.write(_reply(fault, dialect, is_stream=is_stream))
        return fault in ("none", "429", "500", "not-json", "gzip")


def _reply(fault: str, dialect: bodies.Dialect, *, is_stream: bool) -> bytes:
    """All that is sent at once."""
    if fault == "not-http":
        return NOT_HTTP
    if fault == "not-json":
        return _framed(200, "text/html", NOT_JSON)
    if fault == "gzip":
        return _framed(200, "application/json", TORN_GZIP, "content-encoding: gzip\r\n")
    if fault in ("429", "500"):
        status = int(fault)
        after = f"retry-after: {RETRY_AFTER_SECONDS}\r\n" if status == 429 else ""
        return _framed(status, "application/json", bodies.error(dialect, status), after)
    if is_stream:
        pieces = [_chunked(event) for event in bodies.events(dialect)]
        if fault == "cut":
            return _stream_head() + b"".join(pieces[: len(pieces) // 2])
        return _stream_head() + b"".join(pieces) + b"0\r\n\r\n"
    reply = _framed(200, "application/json", bodies.whole(dialect))
    return reply[:-40] if fault == "cut" else reply


async def _late(
    writer: asyncio.StreamWriter, fault: str, dialect: bodies.Dialect, *, is_stream: bool
) -> None:
    """What a late reply has sent by the time that nobody waits for it any more."""
    if fault == "slow":
        return
    body = bodies.whole(dialect)
    head = (
        _stream_head()
        if is_stream
        else f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    )
    writer.write(head)
    if fault == "silent":
        return
    pieces = bodies.events(dialect) if is_stream else [body[n : n + 8] for n in range(0, 96, 8)]
    for piece in pieces[:-1]:
        writer.write(_chunked(piece) if is_stream else piece)
        await writer.drain()
        await asyncio.sleep(1 / PIECES_A_SECOND)


def _framed(status: int, kind: str, body: bytes, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n{more}content-length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def _stream_head() -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )


def _chunked(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)
