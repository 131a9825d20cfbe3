"""Tool calls as text: what a student writes and what is read in its answer; the one form of router and training. Pure.

A call is written as the chat templates of Qwen and Hermes have it, JSON in a block of its own, one block a call. Read are also
a list in one block (SmolLM2), bare JSON (Llama: `parameters` for `arguments`), and OpenAI's `tool_calls`, which people's files
have. Knows no request and no tools: whether a call fits them is `training.tools`' question.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Never

from router.records import ToolCall

OPENING, CLOSING = "<tool_call>", "</tool_call>"
NO_CALL = "[]"
"""No call and no words either, where a text is needed."""
_BLOCK = re.compile(f"{OPENING}(.*?){CLOSING}", re.DOTALL)


def written(calls: Sequence[ToolCall]) -> str:
    """The calls as a student learns to write them; `NO_CALL` for none."""
    if not calls:
        return NO_CALL
    return "\n".join(f"{OPENING}\n{_body(call)}\n{CLOSING}" for call in calls)


def _body(call: ToolCall) -> str:
    """The JSON of one call; a mark inside its strings is escaped, so that a block ends where it ends."""
    name = json.dumps(call.name, ensure_ascii=False)
    body = f'{{"name":{name},"arguments":{call.arguments or "{}"}}}'
    return body.replace(OPENING, f"\\u003c{OPENING[1:]}").replace(CLOSING, f"\\u003c{CLOSING[1:]}")


def read(text: str) -> tuple[ToolCall, ...] | None:
    """The calls of an answer, () when it has only words; None when it begins a call and is none."""
    plain = text.strip()
    try:
        if OPENING in plain:
            return _blocks(plain)
        return _bare(plain) if plain[:1] in ("{", "[") else ()
    except (ValueError, RecursionError):
        return None


def _blocks(text: str) -> tuple[ToolCall, ...]:
    if OPENING in _BLOCK.sub("", text):
        raise ValueError("a call that does not end")
    found: list[ToolCall] = []
    for block in _BLOCK.findall(text):
        value = _value(block)
        found += map(_call, value if isinstance(value, list) else [value])
    return tuple(found)


def _bare(text: str) -> tuple[ToolCall, ...]:
    """The calls of a text that may be JSON: words when it is JSON of another kind, or no JSON and not begun like a call."""
    try:
        value = _value(text)
    except ValueError:
        if re.match(r"\[?\s*\{", text):
            raise
        return ()
    if isinstance(value, dict):
        value = value["tool_calls"] or [] if "tool_calls" in value else [value]
    is_calls = isinstance(value, list) and all(map(_is_call, value))
    return tuple(map(_call, value)) if is_calls else ()


def _is_call(value: Any) -> bool:
    return isinstance(value, dict) and (
        "function" in value or ("name" in value and bool({"arguments", "parameters"} & set(value)))
    )


def _call(value: Any) -> ToolCall:
    """One call of ours or of OpenAI's.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError("a call without a name")
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = _value(arguments or "{}")
    if arguments is not None and not isinstance(arguments, dict):
        raise ValueError("arguments that are no object")
    return ToolCall(name, compact(arguments or {}))


def compact(value: Any) -> str:
    """A JSON value's shortest text, keys in their order.

    Raises:
        ValueError: a number beyond JSON's.
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _value(text: str) -> Any:
    """The value of a JSON text that can be written again.

    Raises:
        ValueError: it is none, or has half a character or a number beyond JSON's.
    """
    value = json.loads(text, parse_constant=_no_constant)
    compact(value).encode()
    return value


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


def openai_form(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """OpenAI's `tool_calls`; a call without an id gets one by its place, since callers answer by id."""
    return [
        {
            "id": call.id or f"call_{number}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments or "{}"},
        }
        for number, call in enumerate(calls)
    ]
