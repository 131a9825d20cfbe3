"""The replay teacher over HTTP: an OpenAI-style API in front of recorded answers. It says in every reply that it replays."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serving.replay import Faults, RateLimit, ReplaySettings, Rows, last_user_text, tokens

HEADERS = {"x-graduate-replay": "true"}
FINGERPRINT = "replay"


class Refusal(Exception):
    """A request that gets an OpenAI-style error."""

    def __init__(
        self, status: int, kind: str, message: str, *, code: str | None = None,
        param: str | None = None, retry_after_seconds: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_seconds = retry_after_seconds


class ReplayMetrics:
    """What the replay teacher counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "graduate_replay_requests",
            "Chat requests, by how they ended.",
            ["outcome"],
            registry=registry,
        )
        self.rows = Gauge("graduate_replay_rows", "Recorded answers.", registry=registry)


class ReplayApi:
    """The endpoints, over one set of rows."""

    def __init__(
        self,
        rows: Rows,
        settings: ReplaySettings,
        metrics: ReplayMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rows = rows
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._faults = Faults(settings)
        self._limit = RateLimit(settings.requests_per_second)
        self._served = 0
        metrics.rows.set(len(rows))

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`, streaming or not."""
        body = await _body(request)
        text = last_user_text(body["messages"])
        if text is None:
            raise Refusal(
                400,
                "invalid_request_error",
                "messages: no user message with text",
                param="messages",
            )
        wait_seconds = self._limit.admit(self._clock())
        if wait_seconds > 0:
            limit = f"{self._settings.requests_per_second:g} requests per second"
            raise Refusal(
                429, "rate_limit_error", f"replay teacher: over its limit of {limit}",
                code="rate_limit_exceeded", retry_after_seconds=wait_seconds,
            )  # fmt: skip
        latency_seconds, fails = self._faults.draw()
        await asyncio.sleep(latency_seconds)
        if fails:
            raise Refusal(
                500, "server_error",
                f"replay teacher: an error by lot (error rate {self._settings.error_share:g})",
            )  # fmt: skip
        answer = self._rows.find(text)
        if answer is None:
            raise Refusal(
                404, "invalid_request_error",
                f"this is a replay of {len(self._rows)} recorded answers, and none of them is for this "
                f"message ({len(text)} characters); it cannot answer anything new",
                code="replay_unknown_input", param="messages",
            )  # fmt: skip
        self._metrics.requests.labels("answered").inc()
        self._served += 1
        prompt = sum(
            tokens(json.dumps(m.get("content", "")))
            for m in body["messages"]
            if isinstance(m, dict)
        )
        usage = {"prompt_tokens": prompt, "completion_tokens": tokens(answer)}
        usage["total_tokens"] = sum(usage.values())
        head = {
            "id": f"chatcmpl-replay-{self._served}",
            "created": int(time.time()),
            "model": self._settings.model,
            "system_fingerprint": FINGERPRINT,
        }
        if body.get("stream"):
            options = body.get("stream_options")
            wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))
            return StreamingResponse(
                _chunks(head, answer, usage if wants_usage else None),
                media_type="text/event-stream",
                headers=HEADERS,
            )
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer},
            "logprobs": None,
            "finish_reason": "stop",
        }
        reply = head | {"object": "chat.completion", "choices": [choice], "usage": usage}
        return JSONResponse(reply, headers=HEADERS)

    async def models(self, _: Request) -> Response:
        """`GET /v1/models`: one model."""
        model = {
            "id": self._settings.model,
            "object": "model",
            "created": 0,
            "owned_by": "graduate-replay",
        }
        return JSONResponse({"object": "list", "data": [model]}, headers=HEADERS)

    async def health(self, _: Request) -> Response:
        """`GET /health`, `/ready`: always well once it runs."""
        return JSONResponse({"status": "ok", "replay_rows": len(self._rows)}, headers=HEADERS)

    async def metrics(self, _: Request) -> Response:
        """`GET /metrics`: Prometheus text."""
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def refused(self, _: Request, why: Exception) -> Response:
        """An OpenAI-style error body."""
        assert isinstance(why, Refusal)
        self._metrics.requests.labels(str(why.status)).inc()
        error = {"message": str(why), "type": why.kind, "param": why.param, "code": why.code}
        headers = dict(HEADERS)
        if why.retry_after_seconds is not None:
            headers["retry-after"] = str(math.ceil(why.retry_after_seconds))
            headers["retry-after-ms"] = str(math.ceil(why.retry_after_seconds * 1000))
        return JSONResponse({"error": error}, why.status, headers=headers)


async def _missing(request: Request, why: Exception) -> Response:
    """A path or method that is not served."""
    status = why.status_code if isinstance(why, HTTPException) else 404
    message = (
        f"replay teacher: {request.method} {request.url.path} is not served; "
        "served are POST /v1/chat/completions and GET /v1/models"
    )
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": error}, status, headers=HEADERS)


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except (ValueError, RecursionError) as why:
        raise Refusal(400, "invalid_request_error", f"body: not JSON: {why}") from why
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        raise Refusal(
            400, "invalid_request_error", "messages: a list of messages is needed", param="messages"
        )
    return body


async def _chunks(
    head: dict[str, Any], answer: str, usage: dict[str, int] | None
) -> AsyncIterator[bytes]:
    """Server-sent events: the role, the answer by words, the end."""
    head = head | {"object": "chat.completion.chunk"}

    def event(delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return f"data: {json.dumps(head | {'choices': [choice]}, ensure_ascii=False)}\n\n".encode()

    yield event({"role": "assistant", "content": ""})
    start = 0
    while start < len(answer):
        blank = answer.find(" ", start + 1)
        stop = len(answer) if blank < 0 else blank
        yield event({"content": answer[start:stop]})
        start = stop
    yield event({}, "stop")
    if usage is not None:
        yield f"data: {json.dumps(head | {'choices': [], 'usage': usage})}\n\n".encode()
    yield b"data: [DONE]\n\n"


def create_replay_app(
    rows: Rows,
    settings: ReplaySettings,
    *,
    registry: CollectorRegistry | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Starlette:
    """An ASGI app that answers chat requests from `rows`."""
    api = ReplayApi(rows, settings, ReplayMetrics(registry or CollectorRegistry()), clock)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
            Route("/v1/models", api.models),
            Route("/health", api.health),
            Route("/ready", api.health),
            Route("/metrics", api.metrics),
        ],
        exception_handlers={Refusal: api.refused, 404: _missing, 405: _missing},
    )
