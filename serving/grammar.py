"""Constrained decoding by llguidance: a JSON Schema or a choice of texts as the set of tokens allowed next.

Why llguidance and neither xgrammar nor outlines-core: docs/student-server.md has what each costs on a CPU. A grammar is
compiled once and copied for each generation that asks for it again.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import llguidance
import numpy as np
import torch
from llguidance.hf import from_tokenizer

from serving.errors import InvalidRequest
from serving.generation import Sampling

KEPT_GRAMMARS = 64
"""A task asks for the same answer's form again and again; a grammar takes some kilobytes."""


class Grammars:
    """Makes matchers for one tokenizer."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._text = tokenizer
        self._size = max(vocabulary, len(tokenizer))
        self._lock = threading.Lock()
        self._made: llguidance.LLTokenizer | None = None
        self._kept: OrderedDict[tuple[str | None, tuple[str, ...]], llguidance.LLMatcher] = (
            OrderedDict()
        )

    def ready(self) -> llguidance.LLTokenizer:
        """The vocabulary's trie: a third of a second and 40 MB, made for the first request that needs it."""
        with self._lock:
            if self._made is None:
                self._made = from_tokenizer(self._text, n_vocab=self._size)
            return self._made

    def prepare(self, sampling: Sampling) -> None:
        """Compile what a generation must match, in whichever thread has the time: `matcher` then only copies.

        Raises:
            InvalidRequest: as `matcher`.
        """
        if sampling.is_constrained:
            self._compiled(sampling)

    def matcher(self, sampling: Sampling) -> "Matcher | None":
        """What a generation must match; None when it is free.

        Raises:
            InvalidRequest: the schema is not one that can be enforced, or a choice cannot be written.
        """
        if not sampling.is_constrained:
            return None
        return Matcher(self._compiled(sampling).deep_copy(), self.ready().vocab_size)

    def _compiled(self, sampling: Sampling) -> llguidance.LLMatcher:
        trie, key = self.ready(), (sampling.json_schema, sampling.choices)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = llguidance.LLMatcher(trie, self._grammar(sampling), log_level=0)
        made.compute_bitmask()  # some grammars show only here that they are too large
        if made.is_error():
            raise InvalidRequest(f"response_format: {_reason(made)}")
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > KEPT_GRAMMARS:
                self._kept.popitem(last=False)
        return made

    def _grammar(self, sampling: Sampling) -> str:
        if sampling.json_schema is None:
            for choice in sampling.choices:
                self._check(choice)
            return str(llguidance.LLMatcher.grammar_from_regex(_alternatives(sampling.choices)))
        try:
            return str(llguidance.LLMatcher.grammar_from_json_schema(sampling.json_schema))
        except (ValueError, TypeError) as why:
            raise InvalidRequest(f"response_format: {why}") from why

    def _check(self, choice: str) -> None:
        """A vocabulary without all bytes has texts that no sequence of its tokens is; nothing would be allowed half-way."""
        ids = self._text.encode(choice, add_special_tokens=False)
        if self._text.unk_token_id in ids or self._text.decode(ids).strip() != choice.strip():
            raise InvalidRequest(f"choice {choice!r} cannot be written with this model's tokens")


def _reason(matcher: llguidance.LLMatcher) -> str:
    """What is wrong, without the parser's state and the whole schema that llguidance puts after it."""
    return str(matcher.get_error()).partition("\n<state>")[0][:500]


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

        Raises:
            ValueError: the grammar cannot go on. llguidance would allow the end here, and half an answer look whole.
        """
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise ValueError(f"the grammar cannot go on: {_reason(self._matcher)}")
        bits = np.unpackbits(packed, count=self._vocabulary, bitorder="little")
        return torch.from_numpy(bits).bool()

    def accept(self, token: int) -> None:
        """Go on with a token; one that the grammar refuses shows at the next `allowed`."""
        self._matcher.consume_token(token)

    @property
    def is_finished(self) -> bool:
        """Whether the text is whole and nothing may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()
