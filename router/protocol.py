"""The HTTP protocol of callers' connections: uvicorn's, with bounds that it lacks.

A head may have so many bytes and take so long, and a body may pause so long, before the connection is given up with an
error in OpenAI's form: without bounds one slow client holds a connection for ever. A request that comes in one piece,
as nearly all do, costs no timer.
"""

import asyncio
from typing import Any, Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from router import wire

_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


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
        if sum(len(name) + len(value) for name, value in self.headers) > self.max_head_bytes:
            self._head_too_large()
        if not self._gave_up:
            super().on_headers_complete()

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
