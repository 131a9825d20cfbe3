"""Choosing the next token of each row from its logits. Pure but for a row's own random generator.

The order of operations is transformers': penalties, temperature, top-k, top-p, typical-p; log-probabilities that are
reported are those of the model's own distribution, before any of them.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from serving.generation import Sampling


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token with its log-probability, and the most probable ones beside it."""

    id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@torch.inference_mode()
def choose_greedy(logits: torch.Tensor) -> list[Choice | None]:
    """The most probable token of each row; None for a row whose scores are not finite.

    `logits` is [rows, vocabulary] and is overwritten: memory for as many numbers again is taken from the system and given back
    each step, 2 ms of 45. The sum is written out: torch's `logsumexp` takes 18 times as long over 8 rows of 49,152.
    """
    best = logits.max(dim=-1)
    logprobs = -logits.sub_(best.values[:, None]).exp_().sum(dim=-1).log_()
    return [
        Choice(token, logprob) if math.isfinite(logprob) else None
        for token, logprob in zip(best.indices.tolist(), logprobs.tolist(), strict=True)
    ]


def is_plain(sampling: Sampling) -> bool:
    """Whether the most probable token is simply the answer: greedy, no penalty, nothing else asked for."""
    return (
        sampling.greedy
        and sampling.repetition_penalty == 1.0
        and sampling.frequency_penalty == 0.0
        and sampling.presence_penalty == 0.0
        and not sampling.num_alternatives
    )


def choose(
    logits: torch.Tensor,
    sampling: Sampling,
    prompt_ids: Sequence[int],
    generated: Sequence[int],
    generator: torch.Generator | None,
    *,
    allowed: torch.Tensor | None = None,
) -> Choice:
    """The next token of one row.

    Args:
        logits: [vocabulary].
        generator: the row's own, None for a greedy row.
        allowed: [vocabulary] bool of tokens that a grammar allows; None allows all.

    Raises:
        ValueError: no token is left to choose.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    scores = logits.clone()
    if allowed is not None:
        scores[: len(allowed)].masked_fill_(~allowed[: len(scores)], float("-inf"))
    _penalise(scores, sampling, prompt_ids, generated)
    if not bool(torch.isfinite(torch.logsumexp(scores, dim=-1))):
        raise ValueError("no token is allowed, or the scores are not finite")
    if sampling.greedy or generator is None:
        token = int(scores.argmax())
    else:
        token = _draw(scores, sampling, generator)
    return Choice(token, float(logprobs[token]), _alternatives(logprobs, sampling.num_alternatives))


def _alternatives(logprobs: torch.Tensor, count: int) -> tuple[tuple[int, float], ...]:
    if not count:
        return ()
    top = logprobs.topk(min(count, len(logprobs)))
    return tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def _penalise(
    scores: torch.Tensor, sampling: Sampling, prompt_ids: Sequence[int], generated: Sequence[int]
) -> None:
    """Repetition penalty over prompt and output (Keskar et al. 2019), frequency and presence over the output (OpenAI)."""
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt_ids, *generated}))
        if len(seen):
            chosen = scores[seen]
            scores[seen] = torch.where(
                chosen > 0,
                chosen / sampling.repetition_penalty,
                chosen * sampling.repetition_penalty,
            )
    if (sampling.frequency_penalty or sampling.presence_penalty) and generated:
        counts = Counter(generated)
        ids = torch.tensor(list(counts))
        times = torch.tensor([float(n) for n in counts.values()])
        scores[ids] -= sampling.frequency_penalty * times + sampling.presence_penalty


def _draw(scores: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    scores = scores / max(sampling.temperature, 1e-5)
    if sampling.top_k is not None and sampling.top_k < len(scores):
        floor = scores.topk(sampling.top_k).values[-1]
        scores = scores.masked_fill(scores < floor, float("-inf"))
    if sampling.top_p is not None and sampling.top_p < 1.0:
        scores = _keep_mass(scores, scores.sort(descending=True).indices, sampling.top_p)
    if sampling.typical_p is not None and sampling.typical_p < 1.0:
        logprobs = torch.log_softmax(scores, dim=-1)
        entropy = -(logprobs.exp() * logprobs).nansum()
        surprise = (-logprobs - entropy).abs()
        scores = _keep_mass(scores, surprise.sort().indices, sampling.typical_p)
    chosen = torch.multinomial(scores.softmax(dim=-1), 1, generator=generator)
    return int(chosen)


def _keep_mass(scores: torch.Tensor, order: torch.Tensor, mass: float) -> torch.Tensor:
    """Keep tokens in `order` until their probabilities reach `mass`; the first is always kept."""
    cumulative = scores.softmax(dim=-1)[order].cumsum(dim=-1)
    beyond = cumulative > mass
    beyond[1:] = beyond[:-1].clone()
    beyond[0] = False
    return scores.scatter(0, order[beyond], float("-inf"))
