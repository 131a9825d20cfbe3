"""Asking the teacher: the caller's bytes go out as they came, the teacher's come back as they are.

Headers pass both ways but for those of the connection itself and ours. Knows one backend and no policy beyond the
model's name.
"""

import asyncio
import functools
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass

import msgspec

from router.auth import KEY_HEADERS
from router.backends import BackendClient
from router.errors import BackendError
from router.records import NO_BODY, Answer, Purpose
from router.transport import Header, Reply, header_lines
from router.wire import EMPTY_REPLY, ReplyView, RequestView, read_reply

_HOP_BY_HOP = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
        b"transfer-encoding", b"upgrade", b"proxy-connection",
    )
)  # fmt: skip
_NOT_TO_BACKENDS = _HOP_BY_HOP | {b"host", b"content-length", b"expect"}
_NOT_TO_CALLERS = _HOP_BY_HOP | {b"content-length", b"date", b"server"}


def request_headers(
    headers: Iterable[Header], api_key: str | None, *, drop_key: bool, identity: bool
) -> list[Header]:
    """The caller's headers for a backend.

    Args:
        api_key: the backend's own key; it replaces the caller's, in the header that the caller used.
        drop_key: the caller's key is one of ours and stays here.
        identity: ask for an uncompressed reply, because the router reads it.
    """
    stays = api_key is not None or drop_key
    passed: list[Header] = []
    used = b"authorization"
    for name, value in headers:
        if name in KEY_HEADERS and stays:
            used = name
        elif not (
            name in _NOT_TO_BACKENDS
            or name.startswith(b"x-graduate-")
            or (identity and name == b"accept-encoding")
        ):
            passed.append((name, value))
    if identity:
        passed.append((b"accept-encoding", b"identity"))
    if api_key is not None:
        key = api_key.encode()
        passed.append((used, b"Bearer " + key if used == b"authorization" else key))
    return passed


@functools.lru_cache(maxsize=1024)
def _request_lines(headers: tuple[Header, ...], api_key: str | None, drop_key: bool) -> bytes:
    """`request_headers` as they go out. A caller sends the same ones again and again."""
    return header_lines(request_headers(headers, api_key, drop_key=drop_key, identity=True))


def reply_headers(headers: Iterable[Header]) -> list[Header]:
    """The teacher's headers for the caller, in order, names in lower case as ASGI wants them."""
    return [
        (lower, value) for name, value in headers if (lower := name.lower()) not in _NOT_TO_CALLERS
    ]


_any_json = msgspec.json.Decoder(msgspec.Raw)


def _is_json(body: bytes) -> bool:
    try:
        _any_json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class TeacherClient:
    """A route's teacher behind one backend."""

    client: BackendClient
    model: str | None
    keep_key: bool
    """Whether the caller's own key may go to the teacher: only where no keys of ours are in use."""

    def open(self, request: RequestView, headers: tuple[Header, ...]) -> Awaitable[Reply]:
        """The head of the teacher's reply, when awaited.

        Raises:
            BackendError: no answer came.
        """
        path = request.path.removeprefix("/v1").encode()
        lines = _request_lines(headers, self.client.api_key, not self.keep_key)
        return self.client.send(b"POST", path, lines, request.with_model(self.model))

    def answer(
        self, request: RequestView, view: ReplyView, status: int, seconds: float, purpose: Purpose,
        body: bytes | None = None, first: float | None = None, error: str | None = None,
    ) -> Answer:  # fmt: skip
        """The answer that a reply amounts to."""
        is_json = body and (view is not EMPTY_REPLY or _is_json(body))
        # By position, in the order of `Answer`: by name msgspec takes ten times as long.
        return Answer(
            "teacher", self.client.name, view.model or self.model or request.model, None, purpose, status, view.text,
            view.tool_calls, view.finish_reason, view.usage, seconds, first, None,
            error or (None if 200 <= status < 300 else "status"), None, self.client.cost(view.usage),
            msgspec.Raw(body) if body and is_json else NO_BODY,
        )  # fmt: skip

    def no_answer(
        self, request: RequestView, why: BackendError, seconds: float, purpose: Purpose
    ) -> Answer:
        """The answer that an exception amounts to."""
        return Answer(
            role="teacher", backend=self.client.name, model=self.model or request.model,
            purpose=purpose, latency_seconds=seconds, error=why.word,
        )  # fmt: skip

    async def ask(
        self, request: RequestView, headers: tuple[Header, ...], purpose: Purpose
    ) -> Answer:
        """The whole answer, unseen by the caller: for audits and noise. Never raises."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            reply = await self.open(request, headers)
            body = await reply.read()
        except BackendError as why:
            return self.no_answer(request, why, loop.time() - began, purpose)
        view = read_reply(body) or EMPTY_REPLY
        return self.answer(request, view, reply.status, loop.time() - began, purpose, body)
