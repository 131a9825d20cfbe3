"""What a model answers on examples: greedy, in batches, with the confidence that the router would see.

Nothing constrains the decoding, so an evaluation here is what serving gives. Confidence is the probability of the whole
greedy answer, its end-of-sequence token included: exp of the sum of the tokens' log-probabilities.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from training.dataset import Example
from training.encode import Tokenizer, encode_prompt

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer. `confidence` is 0-1; `latency_seconds` is the batch's time shared out over its rows."""

    text: str
    confidence: float
    latency_seconds: float = 0.0
    tokens: int = 0


class Predictor(Protocol):
    """Anything that answers examples: a student, a baseline, the teacher's recorded answers."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def predict(
        self, examples: Sequence[Example], progress: Progress | None = None
    ) -> list[Prediction]:
        """One prediction an example, in order."""
        ...


@dataclass(frozen=True, slots=True)
class ModelPredictor:
    """A causal model, with or without an adapter, over the student's template."""

    name: str
    model: Any
    tokenizer: Any
    template: str
    max_input_chars: int | None = None
    max_new_tokens: int = 48
    batch_size: int = 32

    def predict(
        self, examples: Sequence[Example], progress: Progress | None = None
    ) -> list[Prediction]:
        """Greedy answers, rows bucketed by length."""
        prompts = [
            encode_prompt(e.messages, self.tokenizer, self.template, self.max_input_chars, e.tools)[
                0
            ]
            for e in examples
        ]
        found: list[Prediction | None] = [None] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            answers = greedy(
                self.model, self.tokenizer, [prompts[i] for i in chosen], self.max_new_tokens
            )
            for i, answer in zip(chosen, answers, strict=True):
                found[i] = answer
            if progress:
                progress(len(chosen))
        return [prediction for prediction in found if prediction is not None]


@torch.no_grad()
def greedy(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[Prediction]:
    """Greedy continuations of a batch of prompts, each until its end-of-sequence token."""
    began = time.perf_counter()
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for i, prompt in enumerate(
        prompts
    ):  # padded on the left: all rows' next token is in the last column
        ids[i, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[i, longest - len(prompt) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    running = torch.ones(len(prompts), dtype=torch.bool)
    logprobs = torch.zeros(len(prompts))
    chosen: list[list[int]] = [[] for _ in prompts]
    cache, step_ids, step_positions = None, ids, positions
    for _ in range(max_new_tokens):
        out = model(
            input_ids=step_ids,
            attention_mask=mask,
            position_ids=step_positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        best = torch.log_softmax(out.logits[:, -1].float(), dim=-1).max(dim=-1)
        logprobs += torch.where(running, best.values, torch.zeros(()))
        for i in running.nonzero().flatten().tolist():
            chosen[i].append(int(best.indices[i]))
        running &= best.indices != tokenizer.eos_token_id
        if not running.any():
            break
        step_ids = best.indices[:, None]
        step_positions = positions[:, -1:] + len(chosen[int(running.nonzero()[0])])
        mask = torch.cat([mask, torch.ones(len(prompts), 1, dtype=torch.long)], dim=1)
    each = (time.perf_counter() - began) / len(prompts)
    return [
        Prediction(
            tokenizer.decode(row, skip_special_tokens=True).strip(),
            math.exp(float(logprobs[i])),
            each,
            len(row),
        )
        for i, row in enumerate(chosen)
    ]
