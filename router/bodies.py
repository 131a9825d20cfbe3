"""Bodies that the router writes itself, in OpenAI's form: a student's answer whole or as events, a stream put together, errors.

Pure. What others wrote is read in `wire`.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from router.records import Answer, ToolCall, Usage
from router.tool_calls import openai_form, written
from router.wire import ReplyView


def chat_completion(answer: Answer, request_id: str, model: str, *, is_chat: bool = True) -> bytes:
    """An OpenAI body around a student's answer, for `/v1/chat/completions` or `/v1/completions`."""
    usage = answer.usage
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": answer.finish_reason or "stop",
        "logprobs": None,
    }
    if is_chat:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.tool_calls:
            message["tool_calls"] = openai_form(answer.tool_calls)
        choice["message"] = message
    else:
        choice["text"] = _plain(answer)
    return msgspec.json.encode(
        {
            "id": f"chatcmpl-{request_id}" if is_chat else f"cmpl-{request_id}",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": int(time.time()),
            "model": model,
            "choices": [choice],
            "usage": usage_body(usage),
        }
    )


def _plain(answer: Answer) -> str | None:
    """The answer where only a text can be said."""
    return written(answer.tool_calls) if answer.tool_calls else answer.text


def usage_body(usage: Usage) -> dict[str, int]:
    """OpenAI's `usage` object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def reassembled(view: ReplyView) -> bytes:
    """A stream's answer as one chat completion body, for the record."""
    message: dict[str, Any] = {"role": "assistant", "content": view.text}
    if view.tool_calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in view.tool_calls
        ]
    choice = {"index": 0, "message": message, "finish_reason": view.finish_reason}
    body = {"object": "chat.completion", "model": view.model, "choices": [choice]}
    return msgspec.json.encode({**body, "usage": usage_body(view.usage)})


class ChunkFrames:
    """OpenAI stream events around a student's text: an opening, pieces, and a closing with `[DONE]`."""

    def __init__(self, request_id: str, model: str, *, is_chat: bool = True) -> None:
        self._is_chat = is_chat
        self._frame: dict[str, Any] = {
            "id": f"chatcmpl-{request_id}" if is_chat else f"cmpl-{request_id}",
            "object": "chat.completion.chunk" if is_chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def _event(self, choices: Sequence[Mapping[str, Any]], **more: Any) -> bytes:
        body = msgspec.json.encode({**self._frame, "choices": choices, **more})
        return b"data: " + body + b"\n\n"

    def opening(self) -> bytes:
        """The event that names the role; a text completion has none."""
        if not self._is_chat:
            return b""
        delta = {"role": "assistant", "content": ""}
        return self._event([{"index": 0, "delta": delta, "finish_reason": None}])

    def text(self, piece: str) -> bytes:
        """A piece of the answer."""
        if self._is_chat:
            return self._event([{"index": 0, "delta": {"content": piece}, "finish_reason": None}])
        return self._event([{"index": 0, "text": piece, "finish_reason": None}])

    def calls(self, calls: Sequence[ToolCall]) -> bytes:
        """A chat's tool calls, each whole."""
        whole = [{"index": i, **call} for i, call in enumerate(openai_form(calls))]
        return self._event([{"index": 0, "delta": {"tool_calls": whole}, "finish_reason": None}])

    def closing(self, answer: Answer, include_usage: bool) -> bytes:
        """The finish reason, the usage when it was asked for, and `[DONE]`."""
        place: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
        reason = answer.finish_reason or "stop"
        events = self._event([{"index": 0, **place, "finish_reason": reason}])
        if include_usage:
            events += self._event([], usage=usage_body(answer.usage))
        return events + b"data: [DONE]\n\n"


def chat_chunks(
    answer: Answer,
    request_id: str,
    model: str,
    *,
    include_usage: bool = False,
    is_chat: bool = True,
) -> list[bytes]:
    """A whole student answer as OpenAI stream events, `[DONE]` last."""
    frames = ChunkFrames(request_id, model, is_chat=is_chat)
    pieces = [
        frames.opening(),
        frames.calls(answer.tool_calls)
        if answer.tool_calls and is_chat
        else frames.text(_plain(answer) or ""),
        frames.closing(answer, include_usage),
    ]
    return [piece for piece in pieces if piece]


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    """OpenAI's error body."""
    return msgspec.json.encode(
        {"error": {"message": message, "type": kind, "param": param, "code": code}}
    )
