"""Pairs of texts that are compared anew, offline: a sample of those that student and teacher both answered. Pure."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

from monitoring.windows import input_of, pair_of
from router.records import Record


@dataclass(frozen=True, slots=True)
class TextPair:
    """One request with both answers. `agree` is what the route's own comparator said when it was logged."""

    id: str
    text: str
    teacher: str
    student: str
    agree: bool | None


def sampled(records: Iterable[Record], size: int, adapter: str | None = None) -> list[TextPair]:
    """A uniform sample of the pairs with text, oldest first (Vitter 1985, algorithm R); the same records give the same.

    Args:
        adapter: `name/version`; None takes any.
    """
    draws, seen = random.Random(0), 0
    kept: list[tuple[int, TextPair]] = []
    for record in records:
        found = _pair(record, adapter)
        if found is None:
            continue
        seen += 1
        if len(kept) < size:
            kept.append((seen, found))
        elif (place := draws.randrange(seen)) < size:
            kept[place] = (seen, found)
    return [pair for _, pair in sorted(kept, key=lambda item: item[0])]


def _pair(record: Record, adapter: str | None) -> TextPair | None:
    both = pair_of(record)
    if both is None or record.comparison is None:
        return None
    student, teacher = both
    if not (student.ok and teacher.ok and student.text and teacher.text):
        return None
    if adapter is not None and student.adapter != adapter:
        return None
    text = input_of(record)
    if not text:
        return None
    return TextPair(record.id, text, teacher.text, student.text, record.comparison.agree)
