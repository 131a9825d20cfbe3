"""The text that a student sees for a chat request: the one place where training and serving must agree.

A student's template is short, because a small model's time goes into tokens: the instruction that the teacher
needed is in the student's weights. The input is cut *before* the template is laid around it, in characters, so
that the cut is the same in the router (which has no tokenizer) and in training, and never takes the end of
the template away. Knows nothing of policies, tokenizers or backends.
"""

import functools
import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

FIELDS = frozenset({"input", "system", "conversation", "tools"})
"""What a template may name: the last user message, the system message, all turns before the last one, the request's tools."""


def text_of(content: Any) -> str:
    """The text of a message's `content`: a string, or the joined text parts of a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        parts = [
            p.get("text") for p in content if isinstance(p, Mapping) and p.get("type") == "text"
        ]
        return "\n".join(p for p in parts if isinstance(p, str))
    return ""


def last_user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of the last user message, "" when there is none."""
    return next(
        (text_of(m.get("content")) for m in reversed(messages) if m.get("role") == "user"), ""
    )


def cut(text: str, max_chars: int | None) -> tuple[str, bool]:
    """`text` with at most `max_chars` characters, and whether something was taken off its end."""
    if max_chars is None or len(text) <= max_chars:
        return text, False
    return text[:max_chars], True


def template_fields(template: str) -> set[str]:
    """The names in braces that `template` uses.

    Raises:
        ValueError: the braces are not balanced, or a field is not one of `FIELDS`.
    """
    parts = list(string.Formatter().parse(template))
    names = {name for _, name, _, _ in parts if name is not None}
    formatted = [spec or conversion for _, _, spec, conversion in parts if spec or conversion]
    if formatted:
        raise ValueError(
            f"format {formatted[0]!r} in template; allowed: fields as they are, such as {{input}}"
        )
    unknown = names - FIELDS
    if unknown:
        raise ValueError(
            f"unknown field {sorted(unknown)[0]!r} in template; allowed: {', '.join(sorted(FIELDS))}"
        )
    return names


@functools.lru_cache(maxsize=256)
def _used(template: str) -> frozenset[str]:
    return frozenset(template_fields(template))


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    max_input_chars: int | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> tuple[str, bool]:
    """The student's prompt for a chat, and whether its input was cut.

    Args:
        template: text with `{input}`, `{system}`, `{conversation}` or `{tools}`; doubled braces stand for themselves.
        messages: OpenAI chat messages.
        max_input_chars: characters of the last user message that are kept; None keeps all.
        tools: of the request, in OpenAI's form; each is a line of JSON.
    """
    used = _used(template)
    system = _system(messages) if "system" in used else ""
    conversation = _before_last(messages) if "conversation" in used else ""
    shown, was_cut = cut(last_user_text(messages), max_input_chars)
    known = _tools(tools) if "tools" in used else ""
    filled = template.format(
        input=shown.strip(), system=system, conversation=conversation, tools=known
    )
    return filled, was_cut


def _tools(tools: Sequence[Mapping[str, Any]]) -> str:
    """Name, description and parameters of each tool, a line each, keys in the caller's order."""
    return "\n".join(
        json.dumps(tool.get("function", tool), ensure_ascii=False, separators=(",", ":"))
        for tool in tools
    )


def _system(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(
        text_of(m.get("content")) for m in messages if m.get("role") in ("system", "developer")
    )


def _before_last(messages: Sequence[Mapping[str, Any]]) -> str:
    """All turns before the last user message."""
    turns = [m for m in messages if m.get("role") not in ("system", "developer")]
    last = next((i for i in range(len(turns) - 1, -1, -1) if turns[i].get("role") == "user"), None)
    before = turns[: last if last is not None else len(turns)]
    return "\n".join(f"{m.get('role')}: {text_of(m.get('content'))}" for m in before)
