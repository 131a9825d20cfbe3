"""A stand-in for the teacher's API and for one student server: it answers mail by a rule, and errs as the story says.

It is told apart from a model everywhere: its replies name the model `stand-in`. The other student of the story is a
real student server with a tiny random model.
"""

import asyncio
import json
import random
import threading
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

KINDS = ("refund", "order", "other")


@dataclass
class Behaviour:
    """How often it errs, as shares; the story changes it while it runs."""

    teacher_doubt: float = 0.02
    """The teacher says something else than the rule."""
    student_wrong: float = 0.03
    student_wrong_on_long: float = 0.03
    """On inputs of more than 14 words."""
    student_garbage: float = 0.005
    is_student_down: bool = False


def kind_of(text: str) -> str:
    """The right answer: the first of the kinds that the text names."""
    words = text.split()
    return next((word for word in words if word in KINDS), "other")


def upstream(behaviour: Behaviour, seed: int) -> FastAPI:
    """The application."""
    app = FastAPI()
    draw = random.Random(seed)

    def other_than(kind: str) -> str:
        return draw.choice([k for k in KINDS if k != kind])

    @app.get("/health")
    async def health() -> str:
        """Alive."""
        return "ok"

    @app.post("/v1/chat/completions")
    async def teacher(request: Request) -> dict[str, Any]:
        """The teacher: slow, and seldom in doubt."""
        body = json.loads(await request.body())
        text = body["messages"][-1]["content"]
        await asyncio.sleep(draw.lognormvariate(-3.2, 0.4))
        kind = kind_of(text)
        if draw.random() < behaviour.teacher_doubt:
            kind = other_than(kind)
        answer = kind if body["model"] == "labels" else json.dumps({"kind": kind})
        usage = {"prompt_tokens": 40 + len(text) // 4, "completion_tokens": 8}
        message = {"role": "assistant", "content": answer}
        return {
            "id": "stand-in", "object": "chat.completion", "created": 1, "model": "stand-in",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {**usage, "total_tokens": sum(usage.values())},
        }  # fmt: skip

    @app.post("/generate")
    async def student(request: Request) -> Response:
        """The student: quick, cheap, and wrong as often as the story says."""
        if behaviour.is_student_down:
            return JSONResponse({"error": "down", "error_type": "generation"}, 503)
        prompt = json.loads(await request.body())["inputs"]
        await asyncio.sleep(draw.lognormvariate(-4.6, 0.3))
        kind, is_long = kind_of(prompt), len(prompt.split()) > 14
        wrong = behaviour.student_wrong_on_long if is_long else behaviour.student_wrong
        if draw.random() < wrong:
            kind = other_than(kind)
        text = json.dumps({"kind": kind})
        if draw.random() < behaviour.student_garbage:
            text = "kind is " + kind
        tokens = [
            {"id": i, "text": "t", "logprob": -draw.random() / 4, "special": False}
            for i in range(8)
        ]
        details = {
            "finish_reason": "eos_token", "prompt_tokens": len(prompt) // 4, "generated_tokens": 8,
            "seed": None, "prefill": [], "tokens": tokens,
        }  # fmt: skip
        return JSONResponse({"generated_text": text, "details": details})

    return app


class ThreadServer(uvicorn.Server):
    """A server in a thread: signals are the main thread's."""

    def install_signal_handlers(self) -> None:
        """None."""


class Upstream:
    """The stand-in on a port of this machine, in a thread."""

    def __init__(self, behaviour: Behaviour, port: int, seed: int = 0) -> None:
        self.behaviour = behaviour
        config = uvicorn.Config(
            upstream(behaviour, seed), host="127.0.0.1", port=port, log_level="critical"
        )
        self._server = ThreadServer(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(10)
