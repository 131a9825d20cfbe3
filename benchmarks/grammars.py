"""What constrained decoding costs on a CPU: llguidance, which the student server uses, beside xgrammar and outlines-core.

    pip install --no-deps xgrammar apache-tvm-ffi outlines-core   # in an environment of its own, or beside this one
    OMP_NUM_THREADS=1 python -m benchmarks.grammars FOLDER_OF_A_TOKENIZER

For each answer form: the time until a request may begin (`ready`), then the time of the mask before each token of one
answer, in processor time, so that other programs do not count. One thread; the third of three turns counts for the first two
libraries, compilation is not cached. What came out is in docs/student-server.md.
"""

import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

LABELS = [f"{topic}_{kind}" for topic in ("billing", "delivery", "refund", "praise", "spam", "login") for kind in ("question", "complaint")]  # fmt: skip
ITEM = {
    "type": "object", "required": ["name", "count"], "additionalProperties": False,
    "properties": {"name": {"type": "string", "maxLength": 40}, "count": {"type": "integer", "minimum": 1, "maximum": 99}},
}  # fmt: skip
TICKET = {
    "type": "object", "required": ["intent", "urgent", "order", "items", "reason"], "additionalProperties": False,
    "properties": {
        "intent": {"enum": LABELS}, "urgent": {"type": "boolean"},
        "order": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{6}$"},
        "items": {"type": "array", "items": ITEM, "maxItems": 5}, "reason": {"type": "string", "maxLength": 200},
    },
}  # fmt: skip
ANSWER = {
    "intent": "refund_complaint", "urgent": True, "order": "AB123456",
    "items": [{"name": "blue mug", "count": 2}, {"name": "tea pot, large", "count": 1}],
    "reason": "It came broken and nobody answered my two letters about it.",
}  # fmt: skip
FIELDS = [f"field_{number}" for number in range(60)]
WIDE = {
    "type": "object", "required": FIELDS, "additionalProperties": False,
    "properties": {name: {"type": ["string", "null"]} for name in FIELDS},
}  # fmt: skip
CASES: dict[str, tuple[dict[str, Any] | None, str]] = {
    "one of 12 labels": (None, "refund_complaint"),
    "a ticket, nested": (TICKET, json.dumps(ANSWER)),
    "60 fields": (WIDE, json.dumps({name: "some text" for name in FIELDS})),
}
REGEX = "|".join(map(re.escape, LABELS))
Made = tuple[Callable[[], Any], Callable[[int], Any]]
"""Computes the mask of the next token; goes on with a token."""


def llguidance(tokenizer: Any, vocabulary: int) -> Callable[[dict[str, Any] | None], Made]:
    from llguidance import LLMatcher
    from llguidance.hf import from_tokenizer

    trie = from_tokenizer(tokenizer, n_vocab=vocabulary)

    def make(schema: dict[str, Any] | None) -> Made:
        grammar = (
            LLMatcher.grammar_from_regex(REGEX)
            if schema is None
            else LLMatcher.grammar_from_json_schema(json.dumps(schema))
        )
        matcher = LLMatcher(trie, grammar)
        return matcher.compute_bitmask, matcher.consume_token

    return make


def xgrammar(tokenizer: Any, vocabulary: int) -> Callable[[dict[str, Any] | None], Made]:
    import xgrammar as xg

    info = xg.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary)
    compiler = xg.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    mask = xg.allocate_token_bitmask(1, vocabulary)

    def make(schema: dict[str, Any] | None) -> Made:
        compiled = (
            compiler.compile_regex(REGEX)
            if schema is None
            else compiler.compile_json_schema(json.dumps(schema))
        )
        matcher = xg.GrammarMatcher(compiled)
        return lambda: matcher.fill_next_token_bitmask(mask), matcher.accept_token

    return make


def outlines_core(tokenizer: Any, vocabulary: int) -> Callable[[dict[str, Any] | None], Made]:
    from outlines_core import Guide, Index, Vocabulary, json_schema

    known: dict[bytes, list[int]] = {}
    for number in range(len(tokenizer)):
        if number not in tokenizer.all_special_ids:
            text = tokenizer.decode([number]).encode()
            known.setdefault(text, []).append(number)
    words = Vocabulary(tokenizer.eos_token_id, known)
    mask = np.zeros(vocabulary // 32, dtype=np.int32)

    def make(schema: dict[str, Any] | None) -> Made:
        regex = REGEX if schema is None else json_schema.build_regex_from_schema(json.dumps(schema))
        guide = Guide(Index(regex, words))
        return (
            lambda: guide.write_mask_into(mask.ctypes.data, mask.size, mask.itemsize),
            lambda token: guide.advance(token, return_tokens=False),
        )

    return make


def measured(make: Callable[[], Made], ids: Sequence[int]) -> tuple[float, list[float]]:
    """Processor seconds until ready, and of each mask."""
    began = time.process_time()
    mask, go_on = make()
    ready, masks = time.process_time() - began, []
    for token in ids:
        began = time.process_time()
        mask()
        masks.append(time.process_time() - began)
        go_on(token)
    return ready, masks


def rows(folder: str) -> Iterator[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary = (len(tokenizer) + 31) // 32 * 32
    for library, turns in ((llguidance, 3), (xgrammar, 3), (outlines_core, 1)):
        began = time.process_time()
        make = library(tokenizer, vocabulary)
        yield f"{library.__name__}: vocabulary {time.process_time() - began:.2f} s"
        for name, (schema, text) in CASES.items():
            ids = tokenizer.encode(text, add_special_tokens=False)
            for _ in range(turns):
                ready, masks = measured(partial(make, schema), ids)
            longest = sorted(masks)[int(len(masks) * 0.99) - 1]
            yield (
                f"  {name:18} ready {ready * 1e3:9.1f} ms, mask: median {statistics.median(masks) * 1e6:4.0f} µs, "
                f"p99 {longest * 1e6:4.0f} µs, whole answer of {len(ids)} tokens {sum(masks) * 1e3:6.2f} ms"
            )


if __name__ == "__main__":
    for row in rows(sys.argv[1]):
        print(row, flush=True)
