"""Which waiting requests join the batch at the next step. Pure.

Requests join between steps, oldest first. A step takes at most `max_prefill_tokens` of new prompts, so that rows that
are being decoded do not wait long, and go along in steps that prompts fill: a step of single tokens costs nearly the same with
a few rows or many. One prompt always goes, however long. A request whose adapter is still loading is
passed over, and does not hold up those behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ready", "loading"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request in the queue: its number, prompt tokens to compute, longest possible length, and whether its adapter is there."""

    number: int
    new_tokens: int
    total_tokens: int
    state: State


@dataclass(frozen=True, slots=True)
class Limits:
    """What a batch may hold."""

    max_rows: int
    max_prefill_tokens: int
    max_total_tokens: int
    """Cached tokens of all rows, at their longest."""


def next_batch(
    waiting: Sequence[Waiting], running_rows: int, running_tokens: int, limits: Limits
) -> list[int]:
    """Numbers of the requests that join, in order.

    Args:
        running_tokens: tokens that the running rows may come to hold at their longest.
    """
    chosen: list[int] = []
    prefill = 0
    for item in waiting:
        if running_rows + len(chosen) >= limits.max_rows:
            break
        if item.state == "loading":
            continue
        if chosen and prefill + item.new_tokens > limits.max_prefill_tokens:
            break
        is_alone = not chosen and running_rows == 0
        if running_tokens + item.total_tokens > limits.max_total_tokens and not is_alone:
            break
        chosen.append(item.number)
        prefill += item.new_tokens
        running_tokens += item.total_tokens
    return chosen
