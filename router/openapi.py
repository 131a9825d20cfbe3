"""The OpenAPI description of paths that FastAPI does not serve itself: the hot route's. For readers and for fuzzers.

Only the fields that the router reads are described; all others pass to the backend untouched.
"""

from typing import Any

_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"type": "string"},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]},
    },
}  # fmt: skip
_SHARED: dict[str, Any] = {
    "model": {"type": "string", "description": "A route's `match.model`, or a model of the teacher."},
    "stream": {"type": "boolean"},
    "n": {"type": "integer", "minimum": 1},
    "max_tokens": {"type": "integer", "minimum": 1},
    "user": {"type": "string"},
    "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
    "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
}  # fmt: skip
_CHAT = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {**_SHARED, "messages": {"type": "array", "items": _MESSAGE}},
}
_COMPLETION = {
    "type": "object",
    "required": ["model", "prompt"],
    "properties": {**_SHARED, "prompt": {"type": "string"}},
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}},
        }
    },
}
ERRORS = {
    400: "not JSON, or a field of the wrong type",
    401: "no API key, or not one of this router's",
    403: "the key is not for this route",
    413: "the body is over the limit",
    429: "the key's minute is spent; `retry-after` says when there is more",
    502: "the backend gave no answer",
    504: "the backend was too late",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of errors in OpenAI's form; of all of them when none are named."""
    content = {"application/json": {"schema": _ERROR}}
    return {
        status: {"description": ERRORS[status], "content": content}
        for status in statuses or tuple(ERRORS)
    }


def hot_paths() -> dict[str, Any]:
    """Path items of the hot route."""
    return {
        "/v1/chat/completions": {"post": _operation("Chat, by the policy", _CHAT)},
        "/v1/completions": {"post": _operation("Completion, by the policy", _COMPLETION)},
        "/v1/models": {"get": _operation("The teacher's models, and the routes'", None)},
    }


def _operation(summary: str, body: dict[str, Any] | None) -> dict[str, Any]:
    ok = {"description": "As OpenAI answers", "content": {"application/json": {}, "text/event-stream": {}}}  # fmt: skip
    errors = {str(status): found for status, found in error_responses().items()}
    found: dict[str, Any] = {"summary": summary, "responses": {"200": ok, **errors}}
    if body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return found
