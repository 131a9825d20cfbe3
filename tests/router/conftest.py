"""Real servers for the router's tests: an upstream that can be told to misbehave, and a router in front of it.

The upstream speaks OpenAI's dialect as the teacher and LoRAX's native dialect as the student; it keeps what it was sent.
"""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from router.admin import AdminView, admin_app
from router.app import Router, running
from router.records import Record
from router.serve import admin_server, bind, caller_server
from router.settings import RouterSettings
from router.traffic import scan


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


class Cut(Exception):
    """Breaks a stream off."""


def upstream(behaviour: Behaviour) -> FastAPI:
    app = FastAPI()

    async def note(request: Request) -> bytes:
        body = await request.body()
        behaviour.seen.append((request.url.path, dict(request.headers), body))
        return body

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = json.loads(await note(request))
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
                events(body), media_type="text/event-stream", headers=behaviour.headers
            )
        message: dict[str, Any] = {"role": "assistant", "content": behaviour.teacher}
        if body.get("tools"):
            call = {
                "id": "call_1",
                "type": "function",
                "function": {"name": "look", "arguments": '{"at":1}'},
            }
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choices = [
            {"index": i, "message": message, "finish_reason": "stop"}
            for i in range(body.get("n") or 1)
        ]
        reply = {
            "id": "up-1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": choices,
            "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}, "x_unknown": {"kept": True},
        }  # fmt: skip
        text = json.dumps(reply, indent=1).encode()
        return Response(
            text, 200, {"openai-processing-ms": "7", **behaviour.headers}, "application/json"
        )

    async def events(body: dict[str, Any]) -> AsyncIterator[bytes]:
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

    @app.post("/generate")
    async def generate(request: Request) -> Response:
        await note(request)
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
        await note(request)

        async def pieces() -> AsyncIterator[bytes]:
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

        return StreamingResponse(pieces(), media_type="text/event-stream")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"id": "gpt-x", "object": "model", "created": 1, "owned_by": "up"}],
        }

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        await note(request)
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

    return app


class ThreadServer(uvicorn.Server):
    """uvicorn in a thread, on a free port."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of an application that is served while the block lasts."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    server = ThreadServer(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def shared_upstream() -> Iterator[tuple[str, Behaviour]]:
    behaviour = Behaviour()
    with serving(upstream(behaviour)) as address:
        yield address, behaviour


@pytest.fixture
def behaviour(shared_upstream: tuple[str, Behaviour]) -> Behaviour:
    """The upstream's behaviour, as if it had just been started."""
    found = shared_upstream[1]
    found.__init__()  # type: ignore[misc]
    return found


@dataclass
class Live:
    """A running router in front of the upstream."""

    url: str
    admin: str
    home: Path
    policy: Path
    upstream: str
    router: Router
    client: httpx.Client

    def ask(
        self, text: str = "hello", *, headers: dict[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        """A chat request."""
        body = {"model": "mail", "messages": [{"role": "user", "content": text}], **more}
        return self.client.post("/v1/chat/completions", json=body, headers=headers)

    def records(
        self, count: int = 1, *, settled: Callable[[Record], bool] = lambda record: True
    ) -> list[Record]:
        """The log's records, once there are so many and all have settled."""
        deadline = time.monotonic() + 5
        while True:
            found = list(scan(self.home / "traffic"))
            if len(found) >= count and all(map(settled, found)):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    def metric(self, name: str) -> float:
        """Sum of a metric over its labels."""
        text = httpx.get(f"{self.admin}/metrics", trust_env=False).text
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name)
        )


def policy_text(upstream_address: str, mode: str = "teacher", **more: Any) -> str:
    """A policy with one route, `mail`, over the upstream."""
    student = {
        "backend": "students",
        "adapter": "mail",
        "version": 3,
        "prompt": "Mail: {input}\nAnswer:",
    }
    route = {
        "match": {"model": "mail"}, "teacher": {"backend": "up"}, "student": student, "mode": mode,
        "answer": {"kind": "text", "compare": {"comparator": "exact"}}, **more,
    }  # fmt: skip
    backends = {
        "up": {
            "kind": "openai", "base_url": f"{upstream_address}/v1", "price": {"input": 1, "output": 2},
            "timeout": {"connect": "1s", "first_token": "1s", "total": "3s"}, "retries": {"attempts": 1},
        },
        "students": {
            "kind": "lorax", "base_url": upstream_address, "retries": {"attempts": 1},
            "timeout": {"connect": "1s", "first_token": "500ms", "total": "2s"},
        },
    }  # fmt: skip
    policy = {
        "version": 1,
        "backends": backends,
        "routes": {"mail": route},
        "default": {"teacher": {"backend": "up"}},
    }
    return yaml.safe_dump(policy)


Start = Callable[..., Live]


@pytest.fixture
def start(
    shared_upstream: tuple[str, Behaviour], behaviour: Behaviour, tmp_path: Path
) -> Iterator[Start]:
    """Starts a router with a mode and more route keys."""
    address, _ = shared_upstream
    stops: list[Callable[[], None]] = []

    def begin(
        mode: str = "teacher",
        *,
        text: str | None = None,
        settings: dict[str, Any] | None = None,
        **more: Any,
    ) -> Live:
        policy = tmp_path / "policy.yaml"
        policy.write_text(text or policy_text(address, mode, **more))
        chosen = RouterSettings(policy, tmp_path, reload_seconds=0.05, **(settings or {}))
        live, stop = launch(chosen, address)
        stops.append(stop)
        return live

    yield begin
    for stop in stops:
        stop()


def launch(settings: RouterSettings, address: str) -> tuple[Live, Callable[[], None]]:
    """A router in a thread with its own event loop."""
    made: dict[str, Any] = {}
    is_up, done = threading.Event(), threading.Event()

    async def serve() -> None:
        router = Router.build(settings)
        servers = [
            caller_server(router),
            admin_server(admin_app(AdminView.of(router)), settings),
        ]
        sockets = [bind("127.0.0.1", 0, "test", "--port") for _ in servers]
        async with running(router):
            pairs = zip(servers, sockets, strict=True)
            tasks = [asyncio.create_task(s.serve(sockets=[sock])) for s, sock in pairs]
            while not all(s.started for s in servers):
                await asyncio.sleep(0.005)
            ports = [sock.getsockname()[1] for sock in sockets]
            made.update(router=router, ports=ports, servers=servers)
            is_up.set()
            await asyncio.gather(*tasks)

    def run() -> None:
        try:
            asyncio.run(serve())
        finally:
            done.set()
            is_up.set()

    threading.Thread(target=run, daemon=True).start()
    assert is_up.wait(10)
    assert made, "the router did not start"
    url, admin = (f"http://127.0.0.1:{port}" for port in made["ports"])
    client = httpx.Client(base_url=url, trust_env=False, timeout=10)
    live = Live(url, admin, settings.home, settings.policy, address, made["router"], client)

    def stop() -> None:
        client.close()
        for server in made["servers"]:
            server.should_exit = True
        assert done.wait(10)

    return live, stop
