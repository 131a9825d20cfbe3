"""Constrained decoding by llguidance: a JSON Schema or a choice of texts as the set of tokens allowed next.

llguidance is chosen for its cost on a CPU: it computes a mask lazily from a trie of the vocabulary (some 50 µs a token)
with no compilation of the schema up front, where xgrammar and outlines-core build tables first.
"""

import json
import re
import threading
from collections.abc import Sequence
from typing import Any

import llguidance
import numpy as np
import torch
from llguidance.hf import from_tokenizer

from serving.errors import InvalidRequest
from serving.generation import Sampling


class Grammars:
    """Makes matchers for one tokenizer."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._text = tokenizer
        self._size = max(vocabulary, len(tokenizer))
        self._lock = threading.Lock()
        self._made: llguidance.LLTokenizer | None = None

    def ready(self) -> llguidance.LLTokenizer:
        """The vocabulary's trie: a third of a second and 40 MB, made for the first request that needs it."""
        with self._lock:
            if self._made is None:
                self._made = from_tokenizer(self._text, n_vocab=self._size)
            return self._made

    def matcher(self, sampling: Sampling) -> "Matcher | None":
        """What a generation must match; None when it is free.

        Raises:
            InvalidRequest: the schema is not one that can be enforced, or a choice cannot be written.
        """
        if sampling.json_schema is not None:
            try:
                grammar = llguidance.LLMatcher.grammar_from_json_schema(sampling.json_schema)
            except (ValueError, TypeError) as why:
                raise InvalidRequest(f"response_format: {why}") from why
        elif sampling.choices:
            for choice in sampling.choices:
                self._check(choice)
            grammar = llguidance.LLMatcher.grammar_from_regex(_alternatives(sampling.choices))
        else:
            return None
        trie = self.ready()
        matcher = llguidance.LLMatcher(trie, grammar)
        if matcher.is_error():
            raise InvalidRequest(f"response_format: {matcher.get_error()}")
        return Matcher(matcher, trie.vocab_size)

    def _check(self, choice: str) -> None:
        """A vocabulary without all bytes has texts that no sequence of its tokens is; nothing would be allowed half-way."""
        ids = self._text.encode(choice, add_special_tokens=False)
        if self._text.unk_token_id in ids or self._text.decode(ids).strip() != choice.strip():
            raise InvalidRequest(f"choice {choice!r} cannot be written with this model's tokens")


def _alternatives(choices: Sequence[str]) -> str:
    return "|".join(re.escape(choice) for choice in choices)


class Matcher:
    """The state of one generation under its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def allowed(self) -> torch.Tensor:
        """[vocabulary] bool: the tokens that may come next; the end-of-sequence token when the text may end.

        llguidance's own torch module is not used: importing it imports torch's compiler, seconds of a start.
        """
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        bits = np.unpackbits(packed, count=self._vocabulary, bitorder="little")
        return torch.from_numpy(bits).bool()

    def accept(self, token: int) -> None:
        """Go on with a token."""
        self._matcher.consume_token(token)

    @property
    def is_finished(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())


def schema_text(schema: dict[str, Any]) -> str:
    """A schema as the text that `Sampling` carries."""
    return json.dumps(schema, sort_keys=True)
