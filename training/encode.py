"""Examples to token ids: the student's prompt, the canonical completion, and where the loss falls.

Prompt and completion are tokenised apart and concatenated, because that is what serving does: the prompt's last
token never merges with the answer's first. Shapes: ids are flat tuples, one row an example.
"""

import json
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from router.prompt import render
from router.tool_calls import compact, read, written
from training.dataset import Example
from training.tools import schemas_of


class Tokenizer(Protocol):
    """What is needed of a transformers tokenizer."""

    eos_token_id: int

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Token ids of a text."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str:
        """The text of token ids."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row for the engine. The loss falls on `completion_ids`, the end-of-sequence token included, and nowhere else."""

    id: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    was_cut: bool = False
    weight: float = 1.0
    is_second_task: bool = False
    """An explanation rather than an answer: the declared class mix has no say in it."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def canonical(answer: str, spec: dict[str, Any], tools: Sequence[dict[str, Any]] = ()) -> str:
    """The answer as the student learns to write it.

    JSON becomes compact, its keys in the order of the schema's `properties` (a third fewer tokens than the spaced
    form, and one spelling instead of many); code fences go. So do a tool call's arguments, in the order of its tool's
    schema, and words beside calls go. A label loses surrounding whitespace. Text and what does not parse stay as they are.

    Args:
        tools: those of the request, for answers that call them.
    """
    text = answer.strip()
    if spec.get("kind") == "tool_call":
        return _canonical_calls(text, spec, tools)
    if spec.get("kind") != "json":
        return text
    body = text.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    try:
        value = json.loads(body)
    except ValueError:
        return text
    if isinstance(value, dict):
        value = _in_order(value, spec.get("schema"))
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _in_order(value: dict[str, Any], schema: dict[str, Any] | None) -> dict[str, Any]:
    """The keys in the order of the schema's properties, others after them as they came."""
    rank = {key: place for place, key in enumerate((schema or {}).get("properties") or {})}
    return dict(sorted(value.items(), key=lambda item: rank.get(item[0], len(rank))))


def _canonical_calls(text: str, spec: dict[str, Any], tools: Sequence[dict[str, Any]]) -> str:
    calls = read(text)
    if not calls:
        return text
    schemas = schemas_of(tools)
    return written(
        [
            msgspec.structs.replace(
                call,
                arguments=compact(
                    _in_order(
                        json.loads(call.arguments), schemas.get(call.name) or spec.get("schema")
                    )
                ),
            )
            for call in calls
        ]
    )


def encode_prompt(
    messages: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    template: str,
    max_input_chars: int | None,
    tools: Sequence[dict[str, Any]] = (),
) -> tuple[tuple[int, ...], bool]:
    """Token ids of the student's prompt, and whether the input was cut."""
    text, was_cut = render(template, messages, max_input_chars, tools)
    return tuple(tokenizer.encode(text, add_special_tokens=False)), was_cut


def encode(
    example: Example, tokenizer: Tokenizer, template: str, max_input_chars: int | None
) -> Encoded:
    """One example as a training row."""
    prompt_ids, was_cut = encode_prompt(
        example.messages, tokenizer, template, max_input_chars, example.tools
    )
    answer = tokenizer.encode(example.completion, add_special_tokens=False)
    return Encoded(
        example.id, prompt_ids, (*answer, tokenizer.eos_token_id), was_cut, example.weight
    )


SLACK_TOKENS = 8
"""An answer may be so much longer than the longest one known."""


def answer_limit(examples: Sequence[Example], tokenizer: Tokenizer) -> int:
    """Tokens that an answer may have: the longest completion and its end, and some to see that it is off the track."""
    texts = {e.completion for e in examples}
    longest = max((len(tokenizer.encode(t, add_special_tokens=False)) for t in texts), default=0)
    return longest + 1 + SLACK_TOKENS


def buckets(rows: Sequence[Sized], batch_size: int, order: Sequence[int]) -> list[list[int]]:
    """Batches of row numbers with little padding: `order` is cut into pools, each sorted by length.

    A pool of 16 batches leaves about 5 % padding on mixed texts and still shuffles between epochs.
    """
    pool = batch_size * 16
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        part = sorted(order[start : start + pool], key=lambda i: len(rows[i]))
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return batches
