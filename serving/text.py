"""Tokens to text one at a time: a token may be part of a character, or change the one before it."""

from typing import Any


class Detokenizer:
    """The text of one generation so far. Special tokens add nothing."""

    def __init__(self, tokenizer: Any, special_ids: frozenset[int]) -> None:
        # transformers' own `decode` costs several times what the fast tokenizer under it does, and this runs for every token.
        self._fast = getattr(tokenizer, "backend_tokenizer", None)
        self._tokenizer = tokenizer
        self._special = special_ids
        self._ids: list[int] = []
        self._prefix = 0
        """Tokens from here on are decoded again, so that a space before the newest one is seen."""
        self._read = 0
        """Tokens before here are in `text`."""
        self.text = ""

    def add(self, token: int) -> str:
        """The text that a token adds, "" while a character is incomplete."""
        if token in self._special:
            return ""
        self._ids.append(token)
        before = self._decode(self._ids[self._prefix : self._read])
        after = self._decode(self._ids[self._prefix :])
        if after.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        added = after[len(before) :]
        self._prefix, self._read = self._read, len(self._ids)
        self.text += added
        return added

    def finish(self) -> str:
        """The whole text, an incomplete character at its end included."""
        before = self._decode(self._ids[self._prefix : self._read])
        after = self._decode(self._ids[self._prefix :])
        return self.text + after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        if self._fast is not None:
            return str(self._fast.decode(ids, skip_special_tokens=False))
        text = self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text
