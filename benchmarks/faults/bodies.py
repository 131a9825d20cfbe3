"""What the upstream says when it is well: OpenAI's dialect and LoRAX's, whole and as a stream. Knows no sockets."""

import json
from typing import Any, Literal

Dialect = Literal["openai", "lorax"]
TEXT = "a reply that is long enough to be cut in the middle of it"
WORDS = TEXT.split(" ")
USAGE = {"prompt_tokens": 5, "completion_tokens": len(WORDS), "total_tokens": 5 + len(WORDS)}


def whole(dialect: Dialect) -> bytes:
    """The body of a reply that is not streamed."""
    if dialect == "lorax":
        return _encoded({"generated_text": TEXT, "details": _details(with_tokens=True)})
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": TEXT},
        "finish_reason": "stop",
    }
    return _encoded(
        {
            "id": "up", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [choice], "usage": USAGE,
        }
    )  # fmt: skip


def events(dialect: Dialect) -> list[bytes]:
    """The events of a streamed reply, the one that ends it last."""
    if dialect == "lorax":
        last = len(WORDS) - 1
        return [_token(number, is_last=number == last) for number in range(len(WORDS))]
    texts = [word if number == 0 else f" {word}" for number, word in enumerate(WORDS)]
    deltas = [_chunk({"role": "assistant", "content": ""})]
    deltas += [_chunk({"content": text}) for text in texts]
    return [*deltas, _chunk({}, "stop"), b"data: [DONE]\n\n"]


def error(dialect: Dialect, status: int) -> bytes:
    """The body of an error status, as OpenAI or LoRAX word it."""
    is_limit = status == 429
    if dialect == "lorax":
        kind = "overloaded" if is_limit else "generation"
        return _encoded({"error": "no answer", "error_type": kind})
    kind = "rate_limit_error" if is_limit else "server_error"
    return _encoded({"error": {"message": "no answer", "type": kind, "param": None, "code": None}})


def _details(*, with_tokens: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {
        "finish_reason": "eos_token", "prompt_tokens": 5, "generated_tokens": len(WORDS), "seed": None,
    }  # fmt: skip
    if with_tokens:
        found |= {"prefill": [], "tokens": [_token_fields(n) for n in range(len(WORDS))]}
    return found


def _token_fields(number: int) -> dict[str, Any]:
    text = WORDS[number] if number == 0 else f" {WORDS[number]}"
    return {"id": number, "text": text, "logprob": -0.01, "special": False, "skipped": False}


def _token(number: int, *, is_last: bool) -> bytes:
    event = {
        "token": _token_fields(number),
        "generated_text": TEXT if is_last else None,
        "details": _details() if is_last else None,
    }
    return b"data:" + _encoded(event) + b"\n\n"


def _chunk(delta: dict[str, str], reason: str | None = None) -> bytes:
    chunk = {
        "id": "up", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
    }  # fmt: skip
    return b"data: " + _encoded(chunk) + b"\n\n"


def _encoded(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode()
