"""Texts to token ids: the tokenizer, and the prompt or chat template that belongs to an adapter.

Knows no HTTP. Long texts are encoded in a thread, so that one of them does not hold up every stream.
"""

import asyncio
from typing import Any

from serving.chat import Messages, render_chat, render_prompt
from serving.errors import InvalidRequest
from serving.registry import AdapterRef, Registry

LONG_CHARACTERS = 20_000


class Prompts:
    """One tokenizer, and the registry's templates."""

    def __init__(self, tokenizer: Any, registry: Registry) -> None:
        self._tokenizer = tokenizer
        self._registry = registry
        self._templates: dict[AdapterRef, str | None] = {}

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""

        def ids() -> list[int]:
            found: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)[
                "input_ids"
            ]
            return found

        return await asyncio.to_thread(ids) if len(text) > LONG_CHARACTERS else ids()

    def pieces(self, text: str, *, add_special_tokens: bool) -> list[dict[str, Any]]:
        """`/tokenize`: each token with its place in the text, in characters.

        Raises:
            InvalidRequest: the tokenizer cannot tell places.
        """
        if not self._tokenizer.is_fast:
            raise InvalidRequest("no fast tokenizer")
        encoded = self._tokenizer(
            text, add_special_tokens=add_special_tokens, return_offsets_mapping=True
        )
        return [
            {
                "id": number,
                "text": text[start:stop] or self._tokenizer.decode([number]),
                "start": start,
                "stop": stop,
            }
            for number, (start, stop) in zip(
                encoded["input_ids"], encoded["offset_mapping"], strict=True
            )
        ]

    def chat(self, messages: Messages, ref: AdapterRef | None) -> str:
        """The text of a chat, as the adapter was trained to read it.

        An adapter's manifest may hold a prompt, its folder a `chat_template.jinja`; without either the base model's
        chat template is used.

        Raises:
            TemplateFailed: no template, or it does not take these messages.
        """
        if ref is None:
            return render_chat(self._tokenizer, None, messages)
        manifest = self._registry.manifest(ref)
        if manifest.prompt is not None:
            return render_prompt(manifest.prompt, messages, manifest.max_input_chars)
        return render_chat(self._tokenizer, self._template(ref), messages)

    def _template(self, ref: AdapterRef) -> str | None:
        """The adapter's own chat template; published versions never change, so it is read once."""
        if ref not in self._templates:
            file = self._registry.open_local(ref) / "chat_template.jinja"
            self._templates[ref] = file.read_text() if file.is_file() else None
        return self._templates[ref]
