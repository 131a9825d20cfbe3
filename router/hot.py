"""The hot route: `/v1/*` as plain ASGI, without a framework between socket and exchange.

Reads the body once, hands it to an exchange or passes it through, writes the reply; turns the caller's faults into
OpenAI's error bodies. A caller that goes away cancels what runs for it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec

from router import wire
from router.auth import KeyEntry, permit
from router.decide import DEFAULT
from router.errors import BackendError, CallerError, LimitExceeded, TooLarge
from router.exchange import BrokenStream, Outgoing, begin
from router.protocol import CONNECTION, Cycle
from router.services import InForce, Services
from router.teacher import reply_headers, request_headers
from router.transport import Header

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
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
    if len(body) > limit:
        raise TooLarge(f"the body has {len(body)} bytes; allowed: {limit}")
    return body


class HotRoute:
    """The ASGI application under `/v1`."""

    def __init__(
        self, services: Services, in_force: Callable[[], InForce], max_body_bytes: int
    ) -> None:
        self._services = services
        self._in_force = in_force
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["method"] == "POST" and scope["path"] in DECIDED:
                await self._decided(scope, receive, send)
            elif scope["method"] == "GET" and scope["path"] == "/v1/models":
                await self._models(scope, send)
            else:
                await self._pass_through(scope, receive, send)
        except CallerGone:
            return
        except CallerError as why:
            self._services.metrics.refusals.labels(str(why.status)).inc()
            await _send_whole(send, why.status, *refusal(why))

    async def _decided(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[Header] = scope["headers"]
        known = _by_name(headers)
        key = self._admit(known)
        body = await read_body(receive, self._max_body_bytes)
        request = wire.parse(scope["path"], known, body, key.name if key else None)
        exchange = begin(self._services, self._in_force(), request, headers, key)
        connection: Cycle | None = scope.get("extensions", {}).get(CONNECTION)
        if connection is not None:
            connection.may_cancel = True
        try:
            outgoing = await exchange.reply()
            if outgoing.pieces is None:
                await _send_whole(send, outgoing.status, outgoing.headers, outgoing.body)
            else:
                await _send_pieces(send, outgoing, outgoing.pieces)
        except asyncio.CancelledError:
            if connection is None or not connection.caller_left:
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
            error = wire.error_body(str(why), "api_error", f"backend_{why.word}")
            await _send_whole(send, status, [(b"content-type", b"application/json")], error)
            return
        outgoing = Outgoing(reply.status, _with_length(reply.headers))
        await _send_pieces(send, outgoing, reply.stream())


def _by_name(headers: list[Header]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}


def refusal(why: CallerError) -> tuple[list[Header], bytes]:
    """A caller's fault in OpenAI's form: headers and body."""
    headers = [(b"content-type", b"application/json")]
    if isinstance(why, LimitExceeded):
        headers.append((b"retry-after", str(why.retry_after_seconds).encode()))
    return headers, wire.error_body(str(why), why.kind, None, why.field)


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


async def _send_whole(send: Send, status: int, headers: list[Header], body: bytes) -> None:
    framed = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": framed})
    await send({"type": "http.response.body", "body": body})


async def _send_pieces(send: Send, outgoing: Outgoing, pieces: AsyncIterator[bytes]) -> None:
    """A reply in pieces. A stream that broke ends without its last chunk, so that the caller's client notices."""
    await send(
        {"type": "http.response.start", "status": outgoing.status, "headers": outgoing.headers}
    )
    # The head does not wait for the first piece: clients have timeouts for it.
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    try:
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    except (BrokenStream, BackendError) as why:
        logger.warning("a stream broke off: %s", why)
        raise ConnectionResetError(str(why)) from why
    await send({"type": "http.response.body", "body": b""})
