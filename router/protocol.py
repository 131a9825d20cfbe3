"""The HTTP protocol of callers' connections: uvicorn's, with bounds that it lacks, and less work for a reply.

A head may have so many bytes and take so long, and a body may pause so long, before the connection is given up with an
error in OpenAI's form: without bounds one slow client holds a connection for ever. A request that comes in one piece,
as nearly all do, costs no timer. A reply's head goes out with the first piece of its body, in one write. A caller that
goes away cancels the application's task if the application said that it may be.
"""

import asyncio
import http
from typing import Any, Literal
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from router import wire

CONNECTION = "graduate.connection"
"""Name of the scope's extension: the `Cycle` of the request."""
_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in http.HTTPStatus
}  # fmt: skip

_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class Cycle(RequestResponseCycle):
    """One request and its reply."""

    may_cancel = False
    """Set by the application: its task may be cancelled when the caller goes away."""
    caller_left = False
    task: asyncio.Task[None] | None = None

    async def send(self, message: Any) -> None:
        """The reply's parts, as ASGI names them."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            self.response_started = True
            self.waiting_for_100_continue = False
            self._head = self._head_of(message["status"], message.get("headers", ()))
            return
        body = message.get("body", b"")
        more_body = message.get("more_body", False)
        parts = [self._head] if self._head else []
        self._head = b""
        if self.scope["method"] == "HEAD":
            pass
        elif self.chunked_encoding:
            if body:
                parts += (b"%x\r\n" % len(body), body, b"\r\n")
            if not more_body:
                parts.append(b"0\r\n\r\n")
        else:
            parts.append(body)
        self.transport.write(b"".join(parts))
        if not more_body:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()

    _head = b""

    def _head_of(self, status: int, headers: Any) -> bytes:
        """Status line and headers; without a length the body is sent in chunks."""
        known = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        parts = [known]
        self.chunked_encoding = self.scope["method"] != "HEAD" and status not in (204, 304)
        for name, value in headers:
            if name == b"content-length":
                self.chunked_encoding = False
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive = False
                continue
            parts += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        if self.chunked_encoding:
            parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"\r\n")
        return b"".join(parts)


class BoundedProtocol(HttpToolsProtocol):
    """One caller's connection. The bounds are class attributes: `bounded` makes a class with others."""

    max_head_bytes = 64 << 10
    head_seconds = 15.0
    """From a connection, or a head's first byte, to the head's last."""
    body_seconds = 30.0
    """Between two pieces of a body that we are ready to take."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._reading: Literal["nothing", "head", "body"] = "nothing"
        self._head_bytes = 0
        self._gave_up = False
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(self.head_seconds, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_longer()
        cycle: Cycle | None = self.cycle  # type: ignore[assignment]
        if cycle is not None and cycle.may_cancel and not cycle.response_complete:
            cycle.caller_left = True
            if cycle.task is not None:
                cycle.task.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._gave_up:
            return
        if self._reading != "body":
            self._head_bytes += len(data)
        super().data_received(data)
        if self._reading == "nothing":
            self._wait_no_longer()
        elif self._reading == "head":
            if self._head_bytes > self.max_head_bytes:
                self._head_too_large()
            elif self._late is None:
                self._late = self.loop.call_later(self.head_seconds, self._too_late)
        else:
            self._wait_no_longer()
            self._late = self.loop.call_later(self.body_seconds, self._too_late)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reading = "head"

    def on_headers_complete(self) -> None:
        self._reading = "body"
        self._head_bytes = 0
        if sum([len(name) + len(value) for name, value in self.headers]) > self.max_head_bytes:
            self._head_too_large()
        if self._gave_up:
            return
        cycle = self._new_cycle()
        before, self.cycle = self.cycle, cycle
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:  # requests that were sent without waiting for replies are answered one by one
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _new_cycle(self) -> Cycle:
        """The request as its application sees it."""
        version = self.parser.get_http_version()
        url = httptools.parse_url(self.url)
        raw_path = url.path
        path = raw_path.decode("ascii")
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = raw_path
        scope["query_string"] = url.query or b""
        cycle = Cycle(
            scope=self.scope, transport=self.transport, flow=self.flow, logger=self.logger,
            access_logger=self.access_logger, access_log=False, default_headers=[],
            message_event=asyncio.Event(), expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )  # fmt: skip
        scope["extensions"] = {CONNECTION: cycle}
        return cycle

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        task = self.loop.create_task(cycle.run_asgi(app))
        cycle.task = task  # type: ignore[attr-defined]
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def on_body(self, body: bytes) -> None:
        if not self._gave_up:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._reading = "nothing"
        if not self._gave_up:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP is told so in OpenAI's form."""
        self._give_up(400, msg)

    def _wait_no_longer(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        if self._reading != "body":
            self._give_up(408, f"no whole request head within {self.head_seconds:g} s")
        elif self.flow.read_paused:  # not the caller's fault: we are not taking anything
            self._late = self.loop.call_later(self.body_seconds, self._too_late)
        else:
            self._give_up(408, f"nothing of the body came for {self.body_seconds:g} s")

    def _head_too_large(self) -> None:
        self._give_up(431, f"the request's head has more than {self.max_head_bytes} bytes")

    def _give_up(self, status: int, message: str) -> None:
        if self._gave_up or self.transport.is_closing():
            return
        self._gave_up = True
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            body = wire.error_body(message, "invalid_request_error")
            head = (
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head % (status, _REASONS[status], len(body)) + body)
        self.transport.close()


def bounded(max_head_bytes: int, head_seconds: float, body_seconds: float) -> type[BoundedProtocol]:
    """The protocol with these bounds."""
    bounds = {
        "max_head_bytes": max_head_bytes, "head_seconds": head_seconds, "body_seconds": body_seconds,
    }  # fmt: skip
    return type("BoundedProtocol", (BoundedProtocol,), bounds)
