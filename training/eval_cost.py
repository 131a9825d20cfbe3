"""What answers take: time, tokens and dollars, beside how good they are. Pure but for `timed_alone`.

Times are this machine's. Tokens that nobody counted are estimated at four characters each and marked so.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from router.difficulty import estimated_tokens
from router.policy import Price
from training.dataset import Example
from training.label import cost, prompt_tokens
from training.predict import Prediction, Predictor

WARM_ROWS = 1
"""Rows answered before the clock counts."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One answerer. None where it is not known."""

    p50_seconds: float | None
    """A row's time with its batch's shared out over the rows: throughput, not what one caller waits for."""
    p95_seconds: float | None
    tokens_out: float
    """Mean tokens of an answer, its end included where they were counted."""
    tokens_are_estimated: bool
    usd_per_1000: float | None
    """US dollars of a thousand requests."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What the policy says that student and teacher cost; None where it says nothing."""

    teacher: Price | None = None
    student: Price | None = None


@dataclass(frozen=True, slots=True)
class Waits:
    """One request after another, each alone: what a caller waits for when nobody else asks."""

    rows: int
    p50_seconds: float
    p95_seconds: float


def cost_of(
    examples: Sequence[Example], answers: Sequence[Prediction], price: Price | None
) -> Cost:
    """Figures of one answerer; dollars by its price a token and a node's price an hour."""
    seconds = [p.latency_seconds for p in answers]
    is_timed = any(seconds)
    counted = [p.tokens for p in answers]
    is_estimated = not any(counted)
    tokens = [estimated_tokens(len(p.text)) for p in answers] if is_estimated else counted
    usd = None
    if price is not None:
        asked = sum(prompt_tokens({"messages": e.messages, "tools": e.tools}) for e in examples)
        node = price.per_hour * sum(seconds) / 3600
        usd = 1000 * (cost(price, asked, sum(tokens)) + node) / len(answers)
    return Cost(
        float(np.quantile(seconds, 0.5)) if is_timed else None,
        float(np.quantile(seconds, 0.95)) if is_timed else None,
        sum(tokens) / len(tokens),
        is_estimated,
        usd,
    )


def timed_alone(answerer: Predictor, rows: Sequence[Example]) -> Waits | None:
    """Answer the rows one by one and time each; None without rows."""
    if not rows:
        return None
    for row in rows[:WARM_ROWS]:
        answerer.predict([row])
    seconds = []
    for row in rows:
        began = time.perf_counter()
        answerer.predict([row])
        seconds.append(time.perf_counter() - began)
    return Waits(len(rows), float(np.quantile(seconds, 0.5)), float(np.quantile(seconds, 0.95)))
