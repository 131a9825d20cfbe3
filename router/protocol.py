"""The HTTP protocol of callers' connections: httptools' parser under uvicorn's server, with bounds.

A head may have so many bytes and take so long, and a body may pause so long, before the connection is given up with an
error in OpenAI's form: without bounds one slow client holds a connection for ever. A request that comes in one piece,
as nearly all do, is handed on as a whole, past ASGI; any other goes the way of ASGI. A caller that goes away cancels
the application's task if the application said that it may be.
"""

import asyncio
import logging
from collections import deque
from typing import Any, Literal, cast
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from router import bodies
from router.cycle import Cycle, WholeApp
from router.deadline import NEVER, Deadline
from router.heads import Head, KnownHeads
from router.transport import Header

logger = logging.getLogger(__name__)

_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class CallerConnection(asyncio.Protocol):
    """One caller's connection. Bounds and application are class attributes: `bounded` makes a class with others."""

    max_head_bytes = 64 << 10
    head_seconds = 15.0
    """From a connection, or a head's first byte, to the head's last."""
    body_seconds = 30.0
    """Between two pieces of a body that we are ready to take."""
    idle_seconds = 75.0
    """From a reply to the next request."""
    whole: WholeApp | None = None
    """Who takes whole requests past ASGI."""
    known = KnownHeads()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self.loop = _loop or asyncio.get_running_loop()
        self.app_state = app_state
        self._app = config.loaded_app
        self._server_state = server_state
        self._parser = httptools.HttpRequestParser(self)
        self._reading: Literal["nothing", "head", "body"] = "nothing"
        self._is_new_head = False
        self._head_bytes = 0
        self._gave_up = False
        self._deadline = Deadline(self.loop, self._too_late)
        self._cycle: Cycle | None = None
        """The newest request."""
        self._begun: Cycle | None = None
        """A request whose head is there and that nobody answers yet: its body may be there in a moment."""
        self._waiting: deque[Cycle] = deque()
        """Requests that were sent without waiting for the reply before."""
        self._url = b""
        self._headers: list[Header] = []
        self._last_headers: list[Header] = []
        """Of the request before, without its content-length."""
        self._says_continue = False

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have asyncio's methods without being its subclasses.
        self.transport = cast(asyncio.Transport, transport)
        self.flow = FlowControl(self.transport)
        self.server, self.client = get_local_addr(self.transport), get_remote_addr(self.transport)
        self.scheme = "https" if is_ssl(self.transport) else "http"
        self._server_state.connections.add(self)  # type: ignore[arg-type]
        self._deadline.move(self.loop.time() + self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.stop()
        self._server_state.connections.discard(self)
        if self._cycle is not None:
            self._cycle.leave()
        self.flow.resume_writing()

    def pause_writing(self) -> None:
        self.flow.pause_writing()

    def resume_writing(self) -> None:
        self.flow.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._gave_up:
            return
        is_first = self._reading == "nothing" and self._is_free()
        if is_first and (found := self.known.find(data)):
            self._deadline.at = NEVER
            self._cycle = Cycle(self, *found, is_whole=True)
            self._start(self._cycle)
            return
        if self._reading != "body":
            self._head_bytes += len(data)
        self._parse(data)
        begun, self._begun = self._begun, None
        if begun is not None:
            self._start(begun)
        if self._reading != "nothing":
            self._wait_for_more()
        elif not self._is_free():
            self._deadline.at = NEVER
            if is_first and self._cycle is not None and self._takes_whole(self._cycle):
                self._remember(data, self._cycle.head)
        elif self._cycle is not None:  # the rest of a request that was answered before it was whole
            self._deadline.move(self.loop.time() + self.idle_seconds)

    def _remember(self, data: bytes, head: Head) -> None:
        """Keep a head that came twice: callers that trace send another with every request."""
        headers = [header for header in head.headers if header[0] != b"content-length"]
        if headers == self._last_headers:
            self.known.keep(data, head)
        self._last_headers = headers

    def _is_free(self) -> bool:
        return self._cycle is None or self._cycle.response_complete

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            logger.warning("a caller asked for another protocol; it is answered in HTTP/1.1")
        except httptools.HttpParserError:
            self._give_up(400, "Invalid HTTP request received.")

    def _wait_for_more(self) -> None:
        if self._reading == "body":
            self._deadline.move(self.loop.time() + self.body_seconds)
        elif self._head_bytes > self.max_head_bytes:
            self._head_too_large()
        elif self._is_new_head:
            self._is_new_head = False
            self._deadline.move(self.loop.time() + self.head_seconds)

    # what httptools calls

    def on_message_begin(self) -> None:
        self._reading = "head"
        # The first head's time began with the connection.
        self._is_new_head = self._cycle is not None
        self._url, self._headers, self._says_continue = b"", [], False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._says_continue = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._reading = "body"
        self._head_bytes = 0
        if sum([len(name) + len(value) for name, value in self._headers]) > self.max_head_bytes:
            self._head_too_large()
        if self._gave_up:
            return
        cycle = Cycle(self, self._head(), is_whole=False, says_continue=self._says_continue)
        is_free, self._cycle = self._is_free() and self._begun is None, cycle
        if is_free:
            self._begun = cycle
        else:  # requests that were sent without waiting for replies are answered one by one
            self.flow.pause_reading()
            self._waiting.append(cycle)

    def _head(self) -> Head:
        version = self._parser.get_http_version()
        url = httptools.parse_url(self._url)
        path = url.path.decode("ascii")
        return Head(
            self._parser.get_method().decode("ascii"),
            unquote(path) if "%" in path else path,
            url.path,
            url.query or b"",
            version,
            tuple(self._headers),
            {name.decode("latin-1"): value.decode("latin-1") for name, value in self._headers},
            version != "1.0" and self._parser.should_keep_alive(),
        )

    def on_body(self, body: bytes) -> None:
        if self._gave_up or self._cycle is None or self._cycle.response_complete:
            return
        if self._cycle.take(body):
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        self._reading = "nothing"
        if self._gave_up or self._cycle is None:
            return
        self._cycle.take_end()
        if self._begun is not None:
            begun, self._begun = self._begun, None
            self._start(begun)

    # answering

    def _takes_whole(self, cycle: Cycle) -> bool:
        return self.whole is not None and cycle.is_whole and self.whole.takes(cycle.head)

    def _start(self, cycle: Cycle) -> None:
        if self.whole is not None and self._takes_whole(cycle):
            answering = cycle.run(self.whole.answer, cycle)
        else:
            answering = cycle.run(self._app, cycle.scope(), cycle.receive, cycle.send)
        cycle.task = task = self.loop.create_task(answering)
        self._server_state.tasks.add(task)

    def task_ended(self, cycle: Cycle) -> None:
        """The application is done with a request; the server need not wait for it when it ends."""
        if cycle.task is not None:
            self._server_state.tasks.discard(cycle.task)
            cycle.task = None

    def reply_completed(self) -> None:
        """The reply's last byte is written: the next request may come, or wait no longer."""
        self._server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self._waiting:
            self._start(self._waiting.popleft())
        elif self._reading == "nothing":
            self._deadline.move(self.loop.time() + self.idle_seconds)

    def shutdown(self) -> None:
        """The server ends: answer what is under way, take no more."""
        if self._cycle is None or self._cycle.response_complete:
            self.transport.close()
        else:
            self._cycle.close_after_reply()

    # giving up

    def _too_late(self) -> None:
        if self._reading == "body":
            if self.flow.read_paused:  # not the caller's fault: we are not taking anything
                self._wait_for_more()
            else:
                self._give_up(408, f"nothing of the body came for {self.body_seconds:g} s")
        elif self._reading == "nothing" and self._cycle is not None:  # idle since its last reply
            self.transport.close()
        else:
            self._give_up(408, f"no whole request head within {self.head_seconds:g} s")

    def _head_too_large(self) -> None:
        self._give_up(431, f"the request's head has more than {self.max_head_bytes} bytes")

    def _give_up(self, status: int, message: str) -> None:
        if self._gave_up or self.transport.is_closing():
            return
        self._gave_up = True
        if self._cycle is None or not self._cycle.response_started or self._cycle.response_complete:
            body = bodies.error_body(message, "invalid_request_error")
            head = (
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head % (status, _REASONS[status], len(body)) + body)
        self.transport.close()


def bounded(
    max_head_bytes: int,
    head_seconds: float,
    body_seconds: float,
    idle_seconds: float,
    whole: WholeApp | None = None,
) -> type[CallerConnection]:
    """The protocol with these bounds, and who takes whole requests."""
    given = {
        "max_head_bytes": max_head_bytes, "head_seconds": head_seconds, "body_seconds": body_seconds,
        "idle_seconds": idle_seconds, "whole": whole, "known": KnownHeads(),
    }  # fmt: skip
    return type("CallerConnection", (CallerConnection,), given)
