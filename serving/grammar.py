"""Constrained decoding by llguidance: a JSON Schema or a choice of texts as the set of tokens allowed next.

llguidance is chosen for its cost on a CPU: it computes a mask lazily from a trie of the vocabulary (some 50 µs a token)
with no compilation of the schema up front, where xgrammar and outlines-core build tables first.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import llguidance
import llguidance.torch
import torch
from llguidance.hf import from_tokenizer

from serving.errors import InvalidRequest
from serving.generation import Sampling


class Grammars:
    """Makes matchers for one tokenizer."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._tokenizer = from_tokenizer(tokenizer, n_vocab=max(vocabulary, len(tokenizer)))

    def matcher(self, sampling: Sampling) -> "Matcher | None":
        """What a generation must match; None when it is free.

        Raises:
            InvalidRequest: the schema is not one that can be enforced.
        """
        if sampling.json_schema is not None:
            try:
                grammar = llguidance.LLMatcher.grammar_from_json_schema(sampling.json_schema)
            except (ValueError, TypeError) as why:
                raise InvalidRequest(f"response_format: {why}") from why
        elif sampling.choices:
            grammar = llguidance.LLMatcher.grammar_from_regex(_alternatives(sampling.choices))
        else:
            return None
        matcher = llguidance.LLMatcher(self._tokenizer, grammar)
        if matcher.is_error():
            raise InvalidRequest(f"response_format: {matcher.get_error()}")
        return Matcher(matcher, self._tokenizer.vocab_size)


def _alternatives(choices: Sequence[str]) -> str:
    return "|".join(re.escape(choice) for choice in choices)


class Matcher:
    """The state of one generation under its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._mask = llguidance.torch.allocate_token_bitmask(1, vocabulary)
        self._vocabulary = vocabulary
        self._bits = torch.arange(32, dtype=torch.int32)

    def allowed(self) -> torch.Tensor:
        """[vocabulary] bool: the tokens that may come next; the end-of-sequence token when the text may end."""
        llguidance.torch.fill_next_token_bitmask(self._matcher, self._mask, 0)
        bits = (self._mask[0][:, None] >> self._bits) & 1
        return bits.reshape(-1)[: self._vocabulary].bool()

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
