"""Texts to token ids: the tokenizer, and the prompt or chat template that belongs to an adapter.

Knows no HTTP. Long texts are encoded in a thread, so that one of them does not hold up every stream.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from serving.chat import Messages, render_chat, render_prompt
from serving.errors import AdapterFailed, NoFastTokenizer
from serving.registry import AdapterRef, Registry, RegistryError

LONG_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True)
class Reading:
    """How an adapter wants a chat to be read."""

    prompt: str | None
    max_input_chars: int | None
    chat_template: str | None


class Prompts:
    """One tokenizer, and the registry's templates."""

    def __init__(self, tokenizer: Any, registry: Registry) -> None:
        self._tokenizer = tokenizer
        self._registry = registry
        self._readings: dict[AdapterRef, Reading] = {}

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""

        def ids() -> list[int]:
            found: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)[
                "input_ids"
            ]
            return found

        return await asyncio.to_thread(ids) if len(text) > LONG_CHARACTERS else ids()

    async def pieces(self, text: str, *, add_special_tokens: bool) -> list[dict[str, Any]]:
        """`/tokenize`: each token with its place in the text, in characters.

        Raises:
            NoFastTokenizer: the tokenizer cannot tell places.
        """
        if not self._tokenizer.is_fast:
            raise NoFastTokenizer("the base model has no fast tokenizer")
        if len(text) > LONG_CHARACTERS:
            return await asyncio.to_thread(self._pieces, text, add_special_tokens)
        return self._pieces(text, add_special_tokens)

    def _pieces(self, text: str, add_special_tokens: bool) -> list[dict[str, Any]]:
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

    async def chat(self, messages: Messages, ref: AdapterRef | None) -> str:
        """The text of a chat, as the adapter was trained to read it.

        An adapter's manifest may hold a prompt, its folder a `chat_template.jinja`; without either the base model's
        chat template is used.

        Raises:
            TemplateFailed: no template, or it does not take these messages.
        """
        if ref is None:
            return render_chat(self._tokenizer, None, messages)
        if ref not in self._readings:  # published versions never change, so each is read once
            self._readings[ref] = await asyncio.to_thread(self._read, ref)
        reading = self._readings[ref]
        if reading.prompt is not None:
            return render_prompt(reading.prompt, messages, reading.max_input_chars)
        return render_chat(self._tokenizer, reading.chat_template, messages)

    def _read(self, ref: AdapterRef) -> Reading:
        try:
            manifest = self._registry.manifest(ref)
            file = self._registry.open_local(ref) / "chat_template.jinja"
            template = file.read_text() if file.is_file() else None
        except (RegistryError, OSError) as why:
            raise AdapterFailed(str(why)) from why
        return Reading(manifest.prompt, manifest.max_input_chars, template)
