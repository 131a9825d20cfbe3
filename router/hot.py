"""The hot route: `/v1/*` without a framework between socket and exchange.

What routes apply to comes whole from our own protocol, or by plain ASGI where it comes in pieces or under another
server; the rest by ASGI. Reads the body once, hands it to an exchange or passes it through, writes the reply; turns the caller's faults into
OpenAI's error bodies. A caller that goes away cancels what runs for it.
"""

import asyncio
import contextlib
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    MutableMapping,
    Sequence,
)
from typing import Any

import msgspec

from router import bodies, wire
from router.auth import KeyEntry, permit
from router.cycle import CONNECTION, Cycle, Scope
from router.errors import BackendError, CallerError, LimitExceeded, TooLarge
from router.exchange import BrokenStream, Outgoing, begin
from router.heads import Head
from router.policy import DEFAULT
from router.services import InForce, Services
from router.teacher import reply_headers, request_headers
from router.transport import Header

logger = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

DECIDED = frozenset(("/v1/chat/completions", "/v1/completions"))
"""Paths that routes apply to; all other `/v1/*` passes through to the default's teacher."""


class CallerGone(Exception):
    """The caller closed its connection before its request was whole."""


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole request body.

    Raises:
        TooLarge: more than `limit` bytes.
        CallerGone: the connection closed first.
    """
    message = await receive()
    if message["type"] == "http.disconnect":
        raise CallerGone
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        parts = [body]
        size = len(body)
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise CallerGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise TooLarge(f"the body has more than {limit} bytes")
        body = b"".join(parts)
    return _within(body, limit)


def _within(body: bytes, limit: int) -> bytes:
    if len(body) > limit:
        raise TooLarge(f"the body has {len(body)} bytes; allowed: {limit}")
    return body


class _AsgiReplies:
    """A `Cycle`'s replies by plain ASGI, under a server that is not ours; that one tells of no caller's leaving."""

    disconnected = caller_left = False
    may_cancel = False

    def __init__(self, send: Send) -> None:
        self.send = send

    async def reply_whole(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        """The whole reply."""
        await _send_whole(self.send, status, headers, body)


class HotRoute:
    """The ASGI application under `/v1`."""

    def __init__(
        self, services: Services, in_force: Callable[[], InForce], max_body_bytes: int
    ) -> None:
        self._services = services
        self._in_force = in_force
        self._max_body_bytes = max_body_bytes

    def takes(self, head: Head) -> bool:
        """Whether a whole request may come by `answer`, past ASGI's messages."""
        return head.method == "POST" and head.path in DECIDED

    async def answer(self, cycle: Cycle) -> None:
        """A request to one of `DECIDED` whose body is there."""
        try:
            head = cycle.head
            key = self._admit(head.names)
            body = _within(cycle.whole_body, self._max_body_bytes)
            await self._decided(head.path, head.headers, head.names, key, body, cycle)
        except CallerGone:
            return
        except CallerError as why:
            await cycle.reply_whole(why.status, *self._refusal(why))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["method"] == "POST" and scope["path"] in DECIDED:
                headers: list[Header] = scope["headers"]
                names = _by_name(headers)
                key = self._admit(names)
                body = await read_body(receive, self._max_body_bytes)
                cycle: Cycle | None = scope.get("extensions", {}).get(CONNECTION)
                replies = cycle or _AsgiReplies(send)
                await self._decided(scope["path"], tuple(headers), names, key, body, replies)
            elif scope["method"] == "GET" and scope["path"] == "/v1/models":
                await self._models(scope, send)
            else:
                await self._pass_through(scope, receive, send)
        except CallerGone:
            return
        except CallerError as why:
            await _send_whole(send, why.status, *self._refusal(why))

    def _refusal(self, why: CallerError) -> tuple[list[Header], bytes]:
        self._services.metrics.refusals.labels(str(why.status)).inc()
        return refusal(why)

    async def _decided(
        self,
        path: str,
        headers: tuple[Header, ...],
        names: Mapping[str, str],
        key: KeyEntry | None,
        body: bytes,
        replies: "Cycle | _AsgiReplies",
    ) -> None:
        """One request that routes apply to, its reply included."""
        request = wire.parse(path, names, body, key.name if key else None)
        if replies.disconnected:
            raise CallerGone
        exchange = begin(self._services, self._in_force(), request, headers, key)
        replies.may_cancel = True
        try:
            outgoing = await exchange.reply()
            if outgoing.pieces is None:
                await replies.reply_whole(outgoing.status, outgoing.headers, outgoing.body)
            else:
                await _send_pieces(replies.send, outgoing, outgoing.pieces)
        except asyncio.CancelledError:
            if not replies.caller_left:
                raise
            exchange.abandoned()

    def _admit(self, headers: Mapping[str, str], route: str | None = None) -> KeyEntry | None:
        """Whose request it is; before its body is read. None where no keys are in use."""
        services = self._services
        key = services.admission.admit(self._in_force().keys, headers, services.now())
        if key is not None and route is not None:
            permit(key, route)
        return key

    async def _models(self, scope: Scope, send: Send) -> None:
        """The teacher's models, and the routes that are chosen by model name and open to the caller."""
        key = self._admit(_by_name(scope["headers"]))
        force = self._in_force()
        policy = force.loaded.policy
        client = force.backends[policy.default.teacher.backend]
        sent = request_headers(
            scope["headers"], client.api_key, drop_key=policy.keys is not None, identity=True
        )
        routes = [
            {"id": route.match.model, "object": "model", "created": 0, "owned_by": "graduate"}
            for name, route in policy.routes.items()
            if route.match.model and (key is None or not key.routes or name in key.routes)
        ]
        try:
            reply = await client.send(b"GET", b"/models", sent)
            body = await reply.read()
            if reply.status != 200:
                await _send_whole(send, reply.status, reply_headers(reply.headers), body)
                return
            found = msgspec.json.decode(body)
            listed = found["data"] if isinstance(found, dict) else None
        except (BackendError, msgspec.MsgspecError, UnicodeDecodeError, LookupError):
            listed = None  # the routes are worth listing while the teacher is away
        known = listed if isinstance(listed, list) else []
        taken = {m.get("id") for m in known if isinstance(m, dict)}
        data = known + [r for r in routes if r["id"] not in taken]
        body = msgspec.json.encode({"object": "list", "data": data})
        await _send_whole(send, 200, [(b"content-type", b"application/json")], body)

    async def _pass_through(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Any other request, to the default's teacher: upload and download streamed, nothing looked at."""
        self._admit(_by_name(scope["headers"]), DEFAULT)
        force = self._in_force()
        policy = force.loaded.policy
        client = force.backends[policy.default.teacher.backend]
        headers: list[Header] = scope["headers"]
        sent = request_headers(
            headers, client.api_key, drop_key=policy.keys is not None, identity=False
        )
        framing = [h for h in headers if h[0] == b"content-length"]
        path = scope["raw_path"].removeprefix(b"/v1")
        if scope["query_string"]:
            path += b"?" + scope["query_string"]
        has_body = bool(framing) or any(name == b"transfer-encoding" for name, _ in headers)
        try:
            body: bytes | AsyncIterator[bytes] = _upload(receive) if has_body else b""
            reply = await client.send(scope["method"].encode(), path, [*sent, *framing], body)
        except BackendError as why:
            status = 504 if why.word == "timeout" else 502
            error = bodies.error_body(str(why), "api_error", f"backend_{why.word}")
            await _send_whole(send, status, [(b"content-type", b"application/json")], error)
            return
        outgoing = Outgoing(reply.status, _with_length(reply.headers), close=reply.close)
        await _send_pieces(send, outgoing, reply.stream())


def _by_name(headers: list[Header]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}


def refusal(why: CallerError) -> tuple[list[Header], bytes]:
    """A caller's fault in OpenAI's form: headers and body."""
    headers = [(b"content-type", b"application/json")]
    if isinstance(why, LimitExceeded):
        headers.append((b"retry-after", str(why.retry_after_seconds).encode()))
    return headers, bodies.error_body(str(why), why.kind, None, why.field)


def _with_length(headers: list[Header]) -> list[Header]:
    """The reply's headers, its content-length kept: nothing of the body is changed."""
    kept = reply_headers(headers)
    return kept + [(n.lower(), v) for n, v in headers if n.lower() == b"content-length"]


async def _upload(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise CallerGone
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


async def _send_whole(send: Send, status: int, headers: Sequence[Header], body: bytes) -> None:
    framed = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": framed})
    await send({"type": "http.response.body", "body": body})


async def _send_pieces(send: Send, outgoing: Outgoing, pieces: AsyncGenerator[bytes, None]) -> None:
    """A reply in pieces. A stream that broke ends without its last chunk, so that the caller's client notices."""
    try:
        async with contextlib.aclosing(pieces):
            await send(
                {
                    "type": "http.response.start",
                    "status": outgoing.status,
                    "headers": outgoing.headers,
                }
            )
            # The head does not wait for the first piece: clients have timeouts for it.
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
    except (BrokenStream, BackendError) as why:
        logger.warning("a stream broke off: %s", why)
        raise ConnectionResetError(str(why)) from why
    finally:
        if outgoing.close is not None:
            outgoing.close()
    await send({"type": "http.response.body", "body": b""})
