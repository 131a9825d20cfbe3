"""OpenAI's dialect, outwards: replies and stream chunks of chat and text completions. Pure.

Finish reasons, ids, object names and the cut at a stop sequence are OpenAI's, where LoRAX's differ.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from serving.generation import Finished, Sampling, TokenOut
from serving.wire_openai import ChatRequest, CompletionRequest, single_prompt

FINISH = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}
MAX_LOGPROB = 0.0
MIN_LOGPROB = -9999.0
"""What OpenAI gives for a token that is as good as impossible; JSON has no -inf."""


@dataclass(frozen=True, slots=True)
class Head:
    """What every object of one reply carries."""

    id: str
    created: int
    model: str
    fingerprint: str


def visible_text(end: Finished, sampling: Sampling) -> str:
    """The output without the stop sequence that ended it, as OpenAI cuts it (LoRAX keeps it)."""
    if end.reason != "stop_sequence":
        return end.text
    cuts = [at for stop in sampling.stop if (at := end.text.find(stop)) >= 0]
    return end.text[: min(cuts)] if cuts else end.text


class VisibleText:
    """Lets the text of a stream through up to a stop sequence, holding back what may be the start of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self._num_shown = 0
        self.num_fed = 0
        """Characters that came, shown or held back."""

    def feed(self, text: str) -> str:
        """The text that can be shown now."""
        self.num_fed += len(text)
        shown = self._next(text)
        self._num_shown += len(shown)
        return shown

    def _next(self, text: str) -> str:
        held = self._held + text
        cuts = [at for stop in self._stop if (at := held.find(stop)) >= 0]
        if cuts:
            self._held = held[min(cuts) :]
            return held[: min(cuts)]
        keep = max(
            (
                size
                for stop in self._stop
                for size in range(1, len(stop))
                if held.endswith(stop[:size])
            ),
            default=0,
        )
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def rest(self, end: Finished, sampling: Sampling) -> str:
        """What has not been shown when the generation has ended: a held beginning, or half a character."""
        return visible_text(end, sampling)[self._num_shown :]


def usage(ends: Sequence[Finished]) -> dict[str, int]:
    """Tokens of all choices; they share one prompt."""
    prompt = ends[0].prompt_tokens
    completion = sum(end.generated_tokens for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _finite(value: float) -> float:
    return min(MAX_LOGPROB, max(MIN_LOGPROB, value)) if math.isfinite(value) else MIN_LOGPROB


def _entry(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": _finite(value), "bytes": list(text.encode())}


def chat_logprobs(tokens: Sequence[TokenOut]) -> dict[str, Any]:
    """`logprobs` of a chat choice; tokens that add no text (end of sequence) are left out as OpenAI does."""
    content = [
        _entry(out.text, out.logprob)
        | {"top_logprobs": [_entry(text, value) for _, text, value in out.alternatives]}
        for out in tokens
        if not out.special
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[TokenOut], offset: int = 0) -> dict[str, Any]:
    """`logprobs` of a text completion's choice."""
    shown = [out for out in tokens if not out.special]
    offsets = []
    for out in shown:
        offsets.append(offset)
        offset += len(out.text)
    return {
        "tokens": [out.text for out in shown],
        "token_logprobs": [_finite(out.logprob) for out in shown],
        "top_logprobs": [
            {text: _finite(value) for _, text, value in out.alternatives} for out in shown
        ],
        "text_offset": offsets,
    }


Sequences = Sequence[tuple[Finished, Sequence[TokenOut]]]


def chat_response(
    request: ChatRequest, head: Head, sampling: Sampling, sequences: Sequences
) -> dict[str, Any]:
    """`chat.completion`."""
    choices = [
        {
            "index": index,
            "message": {
                "role": "assistant",
                "content": visible_text(end, sampling),
                "refusal": None,
            },
            "logprobs": chat_logprobs(tokens) if request.logprobs else None,
            "finish_reason": FINISH[end.reason],
        }
        for index, (end, tokens) in enumerate(sequences)
    ]
    return _object(head, "chat.completion", choices) | {"usage": usage([e for e, _ in sequences])}


def completion_response(
    request: CompletionRequest, head: Head, sampling: Sampling, sequences: Sequences
) -> dict[str, Any]:
    """`text_completion`."""
    start = single_prompt(request) if request.echo else ""
    choices = [
        {
            "index": index,
            "text": start + visible_text(end, sampling),
            "logprobs": None
            if request.logprobs is None
            else completion_logprobs(tokens, len(start)),
            "finish_reason": FINISH[end.reason],
        }
        for index, (end, tokens) in enumerate(sequences)
    ]
    return _object(head, "text_completion", choices) | {"usage": usage([e for e, _ in sequences])}


def _object(head: Head, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": head.id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.fingerprint,
        "choices": choices,
    }


def chat_chunk(
    head: Head,
    index: int,
    delta: dict[str, str],
    finish: str | None = None,
    tokens: Sequence[TokenOut] | None = None,
) -> dict[str, Any]:
    """`chat.completion.chunk`; `tokens` gives it log-probabilities."""
    choice: dict[str, Any] = {
        "index": index,
        "delta": delta,
        "logprobs": None if tokens is None else chat_logprobs(tokens),
        "finish_reason": finish,
    }
    return _object(head, "chat.completion.chunk", [choice])


def completion_chunk(
    head: Head,
    index: int,
    text: str,
    finish: str | None = None,
    tokens: Sequence[TokenOut] | None = None,
    offset: int = 0,
) -> dict[str, Any]:
    """A `text_completion` chunk of a stream; its tokens begin at character `offset` of the whole text."""
    choice: dict[str, Any] = {
        "index": index,
        "text": text,
        "logprobs": None if tokens is None else completion_logprobs(tokens, offset),
        "finish_reason": finish,
    }
    return _object(head, "text_completion", [choice])


def usage_chunk(head: Head, kind: str, ends: Sequence[Finished]) -> dict[str, Any]:
    """The last chunk of a stream whose caller wants the usage."""
    return _object(head, kind, []) | {"usage": usage(ends)}


def models(head_created: int, base_id: str, adapters: Iterator[str]) -> dict[str, Any]:
    """`GET /v1/models`: the base model, then adapters with the base as their parent."""
    listed = [{"id": base_id, "parent": None}] + [{"id": a, "parent": base_id} for a in adapters]
    return {
        "object": "list",
        "data": [
            entry
            | {"object": "model", "created": head_created, "owned_by": "graduate", "root": base_id}
            for entry in listed
        ],
    }
