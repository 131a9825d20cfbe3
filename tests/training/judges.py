"""Judges of rules for tests: real ASGI apps that answer chat completions, each with a bias of its own."""

import json
import re
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

Reader = Callable[[str], float]
"""How good an answer looks to the judge."""


def said_by_rule(content: str, quality: Reader, place: float) -> str:
    """The reply to one question: a pair, the first answer's quality raised by `place`, or a score."""
    pair = re.search(r"Answer A:\n(.*)\n\nAnswer B:\n(.*)", content, re.DOTALL)
    if pair is None:
        answer = content.rpartition("Answer:\n")[2]
        return json.dumps({"reason": "by rule", "score": max(1, min(5, round(quality(answer))))})
    gap = quality(pair[1]) + place - quality(pair[2])
    return json.dumps({"better": "tie" if gap == 0 else "A" if gap > 0 else "B"})


def judge_app(quality: Reader, place: float = 0.0, form: str = "{}", status: int = 200) -> Starlette:  # fmt: skip
    """A judge that goes by a rule; `place` favours who stands first, `form` is what its replies look like."""
    asked: list[dict[str, Any]] = []

    async def answer(request: Request) -> JSONResponse:
        body = await request.json()
        asked.append(body)
        if status != 200:
            return JSONResponse({"error": {"message": "no such key"}}, status)
        said = said_by_rule(body["messages"][-1]["content"], quality, place)
        message = {"role": "assistant", "content": form.replace("{}", said)}
        choice = {"message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        return JSONResponse({"model": body["model"], "choices": [choice], "usage": usage})

    app = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    app.state.asked = asked
    return app
