"""An upstream that can be told to misbehave: OpenAI's dialect as the teacher, LoRAX's native dialect as the student.

It keeps what it was sent.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse


@dataclass
class Behaviour:
    """How the upstream answers, changed by tests while it runs."""

    teacher: str = "teacher says"
    student: str = "student says"
    logprobs: tuple[float, ...] = (-0.01, -0.02)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    teacher_delay: float = 0.0
    student_delay: float = 0.0
    student_status: int = 200
    student_error: dict[str, str] = field(
        default_factory=lambda: {"error": "broken", "error_type": "generation"}
    )
    student_headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Pieces of a stream after which the connection breaks."""
    body: bytes | None = None
    """Instead of a chat completion."""
    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    """Path, headers and body of each request."""
    cancelled: int = 0

    async def note(self, request: Request) -> bytes:
        """Keep a request; its body."""
        body = await request.body()
        self.seen.append((request.url.path, dict(request.headers), body))
        return body


class Cut(Exception):
    """Breaks a stream off."""


def upstream(behaviour: Behaviour) -> FastAPI:
    """The application."""
    app = FastAPI()
    _add_teacher(app, behaviour)
    _add_student(app, behaviour)
    _add_rest(app, behaviour)
    return app


def _add_teacher(app: FastAPI, behaviour: Behaviour) -> None:
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = json.loads(await behaviour.note(request))
        await asyncio.sleep(behaviour.teacher_delay)
        if await request.is_disconnected():
            behaviour.cancelled += 1
        if behaviour.status != 200:
            error = {"error": {"message": "no", "type": "server_error", "param": None, "code": "x"}}
            return JSONResponse(error, behaviour.status, behaviour.headers)
        if behaviour.body is not None:
            return Response(behaviour.body, 200, behaviour.headers, "application/json")
        if body.get("stream"):
            return StreamingResponse(
                _events(behaviour, body), media_type="text/event-stream", headers=behaviour.headers
            )
        return Response(
            json.dumps(_completion(behaviour, body), indent=1).encode(),
            200,
            {"openai-processing-ms": "7", **behaviour.headers},
            "application/json",
        )


def _completion(behaviour: Behaviour, body: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": behaviour.teacher}
    if body.get("tools"):
        call = {
            "id": "call_1",
            "type": "function",
            "function": {"name": "look", "arguments": '{"at":1}'},
        }
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choices = [
        {"index": i, "message": message, "finish_reason": "stop"} for i in range(body.get("n") or 1)
    ]
    return {
        "id": "up-1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": choices,
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}, "x_unknown": {"kept": True},
    }  # fmt: skip


async def _events(behaviour: Behaviour, body: dict[str, Any]) -> AsyncIterator[bytes]:
    def event(delta: dict[str, Any], reason: str | None = None) -> bytes:
        chunk = {
            "id": "up-2", "object": "chat.completion.chunk", "created": 1, "model": body["model"],
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        }  # fmt: skip
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    pieces = [event({"role": "assistant", "content": ""})]
    pieces += [event({"content": word}) for word in behaviour.teacher.split(" ")]
    pieces.append(event({}, "stop"))
    if (body.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        chunk = {
            "id": "up-2",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [],
            "usage": usage,
        }
        pieces.append(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    pieces.append(b"data: [DONE]\n\n")
    for number, piece in enumerate(pieces):
        if number == behaviour.cut_after:
            raise Cut
        yield piece


def _add_student(app: FastAPI, behaviour: Behaviour) -> None:
    @app.post("/generate")
    async def generate(request: Request) -> Response:
        await behaviour.note(request)
        await asyncio.sleep(behaviour.student_delay)
        if behaviour.student_status != 200:
            return JSONResponse(
                behaviour.student_error, behaviour.student_status, behaviour.student_headers
            )
        tokens = [
            {"id": i, "text": "t", "logprob": p, "special": False, "skipped": False}
            for i, p in enumerate(behaviour.logprobs)
        ]
        details = {
            "finish_reason": "eos_token", "prompt_tokens": 5, "generated_tokens": len(tokens), "seed": None,
            "prefill": [], "tokens": tokens,
        }  # fmt: skip
        reply = {"generated_text": behaviour.student, "details": details}
        return JSONResponse(reply, headers={"x-adapter-id": "mail/3"})

    @app.post("/generate_stream")
    async def generate_stream(request: Request) -> Response:
        await behaviour.note(request)

        return StreamingResponse(_student_events(behaviour), media_type="text/event-stream")


async def _student_events(behaviour: Behaviour) -> AsyncIterator[bytes]:
    words = behaviour.student.split(" ")
    for i, word in enumerate(words):
        if i == behaviour.cut_after:
            raise Cut
        text = word if i == 0 else f" {word}"
        last = i == len(words) - 1
        details = {
            "finish_reason": "eos_token",
            "prompt_tokens": 5,
            "generated_tokens": len(words),
            "seed": None,
        }
        event = {
            "token": {
                "id": i,
                "text": text,
                "logprob": -0.1,
                "special": False,
                "skipped": False,
            },
            "generated_text": behaviour.student if last else None,
            "details": details if last else None,
        }
        yield b"data:" + json.dumps(event).encode() + b"\n\n"


def _add_rest(app: FastAPI, behaviour: Behaviour) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"id": "gpt-x", "object": "model", "created": 1, "owned_by": "up"}],
        }

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        await behaviour.note(request)
        vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return JSONResponse({"object": "list", "data": [vector], "model": "e", "usage": usage})

    @app.post("/v1/files")
    async def files(request: Request) -> Response:
        size = 0
        async for piece in request.stream():
            size += len(piece)
        behaviour.seen.append((request.url.path, dict(request.headers), b"%d" % size))
        return JSONResponse(
            {
                "id": "f",
                "object": "file",
                "bytes": size,
                "created_at": 1,
                "filename": "x",
                "purpose": "batch",
                "status": "processed",
            }
        )
