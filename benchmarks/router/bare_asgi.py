"""The yardstick: the least that a proxy on the router's own parts can do (uvicorn, httptools, uvloop, `router.transport`).

No decision, no guard, no record, no metrics: a body comes in and goes out, and so does the answer.
"""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from router.transport import Origin, Pool

HEADERS = ((b"content-type", b"application/json"), (b"authorization", b"Bearer sk-upstream"))
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_pools: list[Pool] = []


def _pool() -> Pool:
    """The one pool; made inside the event loop that it belongs to."""
    if not _pools:
        _pools.append(Pool(Origin.parse("upstream", os.environ["UPSTREAM"])))
    return _pools[0]


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Pass one request on."""
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    reply = await _pool().request(b"POST", scope["path"].encode(), HEADERS, body)
    kind = reply.header(b"content-type") or b"application/json"
    if kind.startswith(b"text/event-stream"):
        headers = [(b"content-type", kind)]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        async for piece in reply.stream():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    answer = await reply.read()
    headers = [(b"content-type", kind), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
