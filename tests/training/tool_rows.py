"""What the tests of tool calls share: two tools, requests that want them or none, and a teacher that calls them."""

import json
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route as Path

from router.answer_spec import AnswerSpec
from router.policy import Route, Student, Teacher
from router.records import ToolCall
from router.tool_calls import written
from tests.words import sentence
from training.build import Row

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "refund",
            "description": "Pay an order back",
            "parameters": {
                "type": "object",
                "properties": {"order": {"type": "integer"}, "why": {"type": "string"}},
                "required": ["order"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "order", "parameters": {"type": "object", "properties": {"item": {"enum": ["apple", "pear"]}}}}},
]  # fmt: skip
SPEC = AnswerSpec(kind="tool_call")


def call(name: str, **arguments: Any) -> str:
    """One call as text."""
    return written([ToolCall(name, json.dumps(arguments))])


def wanted(number: int) -> str:
    """Every fifth request wants no tool, the others the one that they name."""
    if number % 5 == 0:
        return "no tool helps"
    label = sentence(number)[1]
    return call("refund", order=number) if label == "refund" else call("order", item="apple")


def tool_rows(count: int, teacher: Any = wanted) -> list[Row]:
    """Rows whose gold answer is `wanted`."""
    return [
        Row(
            f"r{n}", ({"role": "user", "content": sentence(n)[0]},), teacher(n), wanted(n), "file:x",
            "gpt", float(n), tools=tuple(TOOLS),
        )
        for n in range(count)
    ]  # fmt: skip


def tool_route(prompt: str = "{input}\n") -> Route:
    """A route of that kind."""
    return Route(
        teacher=Teacher(backend="t"),
        student=Student(backend="s", adapter="mail", prompt=prompt),
        answer=SPEC,
    )


def teacher_app(seen: list[dict[str, Any]], wrong: int = 0) -> Starlette:
    """Answers `wanted` by the request's words in OpenAI's form; the first `wrong` rows get a tool that is none."""
    known = {sentence(n)[0]: n for n in range(80)}

    async def chat(request: Request) -> JSONResponse:
        body = await request.json()
        seen.append(body)
        number = known[body["messages"][-1]["content"]]
        message: dict[str, Any] = {"role": "assistant", "content": "no tool helps"}
        if number % 5:
            name = sentence(number)[1] if number >= wrong else "delete"
            arguments = {"order": number} if name == "refund" else {"item": "apple"}
            function = {"name": name, "arguments": json.dumps(arguments)}
            message = {"role": "assistant", "content": None, "tool_calls": [{"id": f"c{number}", "type": "function", "function": function}]}  # fmt: skip
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if number % 5 else "stop"}  # fmt: skip
        usage = {"prompt_tokens": 90, "completion_tokens": 9}
        return JSONResponse({"model": body["model"], "choices": [choice], "usage": usage})

    return Starlette(routes=[Path("/v1/chat/completions", chat, methods=["POST"])])
