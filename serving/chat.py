"""A chat as the text a model reads: an adapter's own prompt or chat template, else the base model's.

Knows no adapter and no HTTP. `render_prompt` repeats what the router does with a student's template, so that a
chat sent here directly reads as the adapter was trained; a test holds the two together.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from serving.errors import TemplateFailed

Messages = Sequence[Mapping[str, str]]
_IN_TEMPLATES = (
    TypeError,
    LookupError,
    ValueError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)
"""What a template's own code can raise."""


def render_prompt(template: str, messages: Messages, max_input_chars: int | None) -> str:
    """A prompt template with `{input}`, `{system}` and `{conversation}` filled in."""
    system = "\n".join(m["content"] for m in messages if m["role"] in ("system", "developer"))
    turns = [m for m in messages if m["role"] not in ("system", "developer")]
    last = next((i for i in reversed(range(len(turns))) if turns[i]["role"] == "user"), None)
    shown = "" if last is None else turns[last]["content"]
    before = turns if last is None else turns[:last]
    conversation = "\n".join(f"{m['role']}: {m['content']}" for m in before)
    kept = shown if max_input_chars is None else shown[:max_input_chars]
    try:
        return template.format(input=kept.strip(), system=system, conversation=conversation)
    except (LookupError, ValueError, AttributeError) as why:
        raise TemplateFailed(
            f"Template error: the adapter's prompt does not render: {why!r}"
        ) from why


def render_chat(tokenizer: Any, template: str | None, messages: Messages) -> str:
    """A chat template with the messages, ending where the assistant begins; None takes the tokenizer's own.

    Raises:
        TemplateFailed: there is none, it does not render, or it refuses the messages.
    """
    if template is None and not tokenizer.chat_template:
        raise TemplateFailed(
            "Template error: the base model has no chat template, nor has the adapter"
        )
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
        )
    except (jinja2.TemplateError, *_IN_TEMPLATES) as why:
        raise TemplateFailed(f"Template error: {why}") from why
    return str(text)
