"""How many bits a model needs for the right answers: bits per byte, and perplexity beside it.

The answers are the rows' completions (gold where there is one, else the teacher's) under the template, the cut and the loss mask of
training: the prompt is given, the answer and its end-of-sequence token are counted. Bits are over the answer's bytes, so
models with different tokenizers can be compared; perplexity is over tokens and compares checkpoints of one model only.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel

from training.dataset import Dataset, Example
from training.encode import Encoded, Tokenizer, encode
from training.whole_model import answer_losses

MOST_ROWS, MOST_ANSWER_TOKENS = 32, 1024
"""Of one pass: logits of 1,024 answer tokens over a vocabulary of 50,000 are 200 MB."""


@dataclass(frozen=True, slots=True)
class Bits:
    """One model. The interval is a 95 % bootstrap over rows."""

    bits_per_byte: float
    low: float
    high: float
    perplexity: float


@dataclass(frozen=True, slots=True)
class BitsReport:
    """Student and base model on the same rows."""

    rows: int
    answer_bytes: int
    answer_tokens: int
    student: Bits
    base: Bits
    saved: float
    """Bits per byte that the adapter saves; `saved_low` to `saved_high` by the same draws of rows for both."""
    saved_low: float
    saved_high: float


def spread(rows: Sequence[Example], count: int) -> list[Example]:
    """`count` of the rows, evenly spread over them; all when there are no more."""
    if len(rows) <= count:
        return list(rows)
    return [rows[i * len(rows) // count] for i in range(count)]


def measure(
    adapted: PeftModel,
    tokenizer: Tokenizer,
    dataset: Dataset,
    rows: Sequence[Example],
    progress: Callable[[int], None] | None = None,
) -> BitsReport:
    """Bits of the rows' answers, with the adapter and without.

    Args:
        rows: of the dataset; at least one.
        progress: told how many more rows are done, each model's counted.
    """
    info = dataset.info
    encoded = [encode(e, tokenizer, info.prompt, info.max_input_chars) for e in rows]
    sizes = np.array([max(1, len(e.completion.encode())) for e in rows])
    tokens = sum(len(row.completion_ids) for row in encoded)
    student = _bits_of_rows(adapted, encoded, progress)
    with adapted.disable_adapter():
        base = _bits_of_rows(adapted, encoded, progress)
    draws = np.random.default_rng(0).integers(0, len(rows), size=(1000, len(rows)))
    saved = np.quantile((base - student)[draws].sum(1) / sizes[draws].sum(1), [0.025, 0.975])
    return BitsReport(
        rows=len(rows),
        answer_bytes=int(sizes.sum()),
        answer_tokens=tokens,
        student=_bits(student, sizes, tokens, draws),
        base=_bits(base, sizes, tokens, draws),
        saved=float((base - student).sum() / sizes.sum()),
        saved_low=float(saved[0]),
        saved_high=float(saved[1]),
    )


def _bits(bits: np.ndarray, sizes: np.ndarray, tokens: int, draws: np.ndarray) -> Bits:
    low, high = np.quantile(bits[draws].sum(1) / sizes[draws].sum(1), [0.025, 0.975])
    whole = float(bits.sum())
    return Bits(whole / float(sizes.sum()), float(low), float(high), 2 ** min(1000.0, whole / tokens))  # fmt: skip


@torch.no_grad()
def _bits_of_rows(
    adapted: PeftModel, rows: Sequence[Encoded], progress: Callable[[int], None] | None
) -> np.ndarray:
    """[rows] bits of each row's answer, in the rows' order."""
    found = np.zeros(len(rows))
    with _evaluating(adapted):
        for chosen in batches(rows):
            each, _ = answer_losses(adapted, [rows[i] for i in chosen])
            place = 0
            for i in chosen:
                end = place + len(rows[i].completion_ids)
                found[i] = float(each[place:end].sum()) / math.log(2)
                place = end
            if progress:
                progress(len(chosen))
    return found


def batches(rows: Sequence[Encoded]) -> list[list[int]]:
    """Row numbers, rows of a length together, in batches whose logits fit into memory."""
    found: list[list[int]] = []
    filled = MOST_ANSWER_TOKENS
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        more = len(rows[i].completion_ids)
        if not found or filled + more > MOST_ANSWER_TOKENS or len(found[-1]) == MOST_ROWS:
            found.append([])
            filled = 0
        found[-1].append(i)
        filled += more
    return found


@contextlib.contextmanager
def _evaluating(adapted: PeftModel) -> Iterator[None]:
    was_training = adapted.training
    adapted.eval()
    try:
        yield
    finally:
        adapted.train(was_training)
