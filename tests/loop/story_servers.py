"""The teacher and both students of the planted story: one HTTP process that answers mail by rules, the same each time.

    python story_servers.py PORT

A mail is `number K asks about KIND` with more words. The teacher names the kind. Student `mail/1` errs on 3 of 100 numbers,
unsure of itself. Student `mail/2` errs on 1 of 100, and on every mail that comes from abroad, sure of itself.
"""

import json
import math
import re
import sys
from typing import Any

import uvicorn

KINDS = ("refund", "order", "other")
UNSURE, SURE = 0.6, 0.97


def teacher(text: str) -> str:
    """The kind that the mail names."""
    return next((word for word in text.split() if word in KINDS), "other")


def student(adapter: str, text: str) -> tuple[str, float]:
    """Its answer, and how sure it is."""
    right = teacher(text)
    wrong = KINDS[(KINDS.index(right) + 1) % len(KINDS)]
    found = re.search(r"number (\d+)", text)
    number = int(found.group(1)) if found else 0
    if adapter == "mail/2" and "abroad" in text:
        return wrong, SURE
    errs = (7, 40, 73) if adapter == "mail/1" else (55,)
    return (wrong, UNSURE) if number % 100 in errs else (right, SURE)


def answered(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The reply: an OpenAI chat completion by the teacher, or LoRAX's by a student."""
    if path == "/generate":
        kind, sure = student(body["parameters"]["adapter_id"], body["inputs"])
        token = {"id": 1, "text": kind, "logprob": math.log(sure), "special": False}
        details = {
            "finish_reason": "eos_token", "prompt_tokens": 20, "generated_tokens": 1, "seed": None, "prefill": [],
            "tokens": [token],
        }  # fmt: skip
        return {"generated_text": kind, "details": details}
    message = {"role": "assistant", "content": teacher(body["messages"][-1]["content"])}
    return {
        "id": "story", "object": "chat.completion", "created": 1, "model": "story-teacher",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 21},
    }  # fmt: skip


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Plain ASGI: there is nothing to route."""
    content = b""
    while True:
        message = await receive()
        content += message.get("body", b"")
        if not message.get("more_body"):
            break
    body = answered(scope["path"], json.loads(content)) if content else {"ok": True}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="critical", lifespan="off")
