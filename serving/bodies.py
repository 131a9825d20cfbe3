"""Request bodies in, JSON out, and callers that go away. Knows Starlette, neither dialect nor the worker."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

Body = TypeVar("Body", bound=msgspec.Struct)
Value = TypeVar("Value")


class BodyRefused(Exception):
    """A body that is not what the route takes; the texts and statuses are those of LoRAX's HTTP library."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class CallerGone(Exception):
    """The caller closed the connection before the answer."""


async def read_body(
    request: Request, kind: type[Body], max_bytes: int, *, needs_content_type: bool = True
) -> Body:
    """The body as `kind`.

    Raises:
        BodyRefused: 413 too long, 415 without a JSON content type, 400 not JSON, 422 of another shape.
    """
    media = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if needs_content_type and media != "application/json" and not media.endswith("+json"):
        raise BodyRefused(415, "Expected request with `Content-Type: application/json`")
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > max_bytes:
            raise BodyRefused(413, f"Failed to buffer the request body: over {max_bytes} bytes")
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as why:
        raise BodyRefused(
            422, f"Failed to deserialize the JSON body into the target type: {why}"
        ) from why
    except (msgspec.DecodeError, UnicodeDecodeError) as why:
        raise BodyRefused(400, f"Failed to parse the request body as JSON: {why}") from why
    except RecursionError as why:
        raise BodyRefused(400, "Failed to parse the request body as JSON: nested too deep") from why


def json_response(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON reply."""
    return Response(
        msgspec.json.encode(body),
        status,
        media_type="application/json",
        headers=dict(headers or {}),
    )


async def unless_gone(request: Request, work: Coroutine[Any, Any, Value]) -> Value:
    """The work's result; it is cancelled when the caller closes the connection first.

    Raises:
        CallerGone: it did.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise CallerGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
