"""One request of a caller and its reply: as ASGI has it, or whole in and whole out without ASGI's messages.

A reply's head goes out with the first piece of its body, in one write. Knows the connection that it belongs to, and no route.
"""

import asyncio
import http
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from router.heads import Head
from router.transport import Header

if TYPE_CHECKING:
    from router.protocol import CallerConnection

logger = logging.getLogger(__name__)

CONNECTION = "graduate.connection"
"""Name of the scope's extension: the `Cycle` of the request."""
_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in http.HTTPStatus
}  # fmt: skip
_BODY_HIGH_WATER = 64 * 1024
"""Bytes of a body that may wait for the application before the caller's connection is paused."""

Scope = MutableMapping[str, Any]


class WholeApp(Protocol):
    """An application that takes whole requests as they are, and replies by their cycle."""

    def takes(self, head: Head) -> bool:
        """Whether such a request is for it; all others go the way of ASGI."""

    async def answer(self, cycle: "Cycle") -> None:
        """Answer a request whose body is there."""


class Cycle:
    """One request and its reply."""

    __slots__ = (
        "_body", "_chunked", "_connection", "_has_news", "_keeps_alive", "_news", "_reply_head", "_says_continue",
        "caller_left", "disconnected", "head", "is_whole", "may_cancel", "response_complete", "response_started", "task",
    )  # fmt: skip

    def __init__(
        self,
        connection: "CallerConnection",
        head: Head,
        body: bytes = b"",
        *,
        is_whole: bool,
        says_continue: bool = False,
    ) -> None:
        self._connection = connection
        self.head = head
        self._body = body
        self.is_whole = is_whole
        """Whether the body has come to its end."""
        self._says_continue = says_continue
        self._keeps_alive = head.keeps_alive
        self._has_news = is_whole
        self._news: asyncio.Event | None = None
        self._reply_head = b""
        self._chunked = False
        self.disconnected = self.caller_left = False
        self.response_started = self.response_complete = False
        self.may_cancel = False
        """Set by the application: its task may be cancelled when the caller goes away."""
        self.task: asyncio.Task[None] | None = None

    # what the connection tells

    def take(self, body: bytes) -> bool:
        """The next piece of the body; whether the caller should pause."""
        self._body += body
        self._tell()
        return len(self._body) > _BODY_HIGH_WATER

    def take_end(self) -> None:
        """The body is whole."""
        self.is_whole = True
        self._tell()

    def leave(self) -> None:
        """The caller is gone."""
        if not self.response_complete:
            self.disconnected = True
            if self.may_cancel:
                self.caller_left = True
                if self.task is not None:
                    self.task.cancel()
        self._tell()

    def close_after_reply(self) -> None:
        """Let the reply be the connection's last."""
        self._keeps_alive = False

    def _tell(self) -> None:
        self._has_news = True
        if self._news is not None:
            self._news.set()

    # whole in, whole out

    @property
    def whole_body(self) -> bytes:
        """The body, once `is_whole`."""
        return self._body

    async def reply_whole(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        """The whole reply, in one write."""
        if self._connection.flow.write_paused and not self.disconnected:
            await self._connection.flow.drain()
        if self.disconnected:
            return
        self.response_started = True
        lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        if not self._keeps_alive:
            lines += b"connection: close\r\n"
        self._connection.transport.write(
            b"%b%bcontent-length: %d\r\n\r\n%b" % (_status_line(status), lines, len(body), body)
        )
        self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        self._tell()
        if not self._keeps_alive:
            self._connection.transport.close()
        self._connection.reply_completed()

    # as ASGI has it

    def scope(self) -> Scope:
        """The request as its application sees it."""
        connection, head = self._connection, self.head
        return {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": head.version,
            "server": connection.server, "client": connection.client, "scheme": connection.scheme,
            "method": head.method, "root_path": "", "path": head.path, "raw_path": head.raw_path,
            "query_string": head.query, "headers": list(head.headers), "state": connection.app_state.copy(),
            "extensions": {CONNECTION: self},
        }  # fmt: skip

    async def run(self, app: Callable[..., Awaitable[None]], *given: Any) -> None:
        """Let the application answer; one that fails or says nothing is answered for with a 500."""
        try:
            await app(*given)
        except BaseException as why:  # noqa: BLE001 - whatever it is, the caller gets an answer
            await self._failed(why)
        else:
            if not self.response_complete and not self.disconnected:
                await self._failed(None)
        finally:
            self._connection.task_ended(self)

    async def _failed(self, why: BaseException | None) -> None:
        logger.error("no whole reply to %s %s", self.head.method, self.head.path, exc_info=why)
        if self.response_started:
            self._connection.transport.close()
            return
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"21"), (b"connection", b"close")]  # fmt: skip
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": b"Internal Server Error"})

    async def receive(self) -> Scope:
        """The body's next piece, or that the caller has left."""
        connection = self._connection
        if self._says_continue and not connection.transport.is_closing():
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._says_continue = False
        if not self.disconnected and not self.response_complete:
            connection.flow.resume_reading()
            if not self._has_news:
                self._news = self._news or asyncio.Event()
                self._news.clear()
                await self._news.wait()
            self._has_news = False
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self._body = self._body, b""
        return {"type": "http.request", "body": body, "more_body": not self.is_whole}

    async def send(self, message: Any) -> None:
        """The reply's parts, as ASGI names them."""
        flow = self._connection.flow
        if flow.write_paused and not self.disconnected:
            await flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            self.response_started = True
            self._says_continue = False
            self._reply_head = self._head_of(message["status"], message.get("headers", ()))
            return
        body, more_body = message.get("body", b""), message.get("more_body", False)
        parts = [self._reply_head] if self._reply_head else []
        self._reply_head = b""
        if self.head.method == "HEAD":
            pass
        elif self._chunked:
            if body:
                parts += (b"%x\r\n" % len(body), body, b"\r\n")
            if not more_body:
                parts.append(b"0\r\n\r\n")
        else:
            parts.append(body)
        self._connection.transport.write(b"".join(parts))
        if not more_body:
            self._complete()

    def _head_of(self, status: int, headers: Any) -> bytes:
        """Status line and headers; without a length the body is sent in chunks."""
        parts = [_status_line(status)]
        self._chunked = self.head.method != "HEAD" and status not in (204, 304)
        for name, value in headers:
            if name == b"content-length":
                self._chunked = False
            elif name == b"connection" and b"close" in value.lower():
                self._keeps_alive = False
                continue
            parts += (name, b": ", value, b"\r\n")
        if not self._keeps_alive:
            parts.append(b"connection: close\r\n")
        if self._chunked:
            parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"\r\n")
        return b"".join(parts)


def _status_line(status: int) -> bytes:
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
