"""The hybrid: confident answers are the student's, the rest go to the teacher. How good, at what share handed over.

The cut is fixed on validation rows and only then read off a test set, so the test's figure is not the best of many.
Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from training.metrics import Rate, rate


@dataclass(frozen=True, slots=True)
class Point:
    """One cut: rows with less confidence than `min_confidence` are handed over."""

    min_confidence: float
    handed_over: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class HybridResult:
    """A cut fixed on validation and what it gives on a test set."""

    min_confidence: float
    validation: Point
    handed_over: float
    accuracy: Rate
    student_alone: Rate
    teacher_alone: Rate
    curve: tuple[Point, ...]
    """The test set's whole curve, for the picture; no figure is picked from it."""


def curve(
    confidence: Sequence[float], student: Sequence[bool], teacher: Sequence[bool]
) -> tuple[Point, ...]:
    """Every distinct cut, from nothing handed over to everything."""
    order = sorted(range(len(confidence)), key=lambda i: confidence[i])
    right = sum(student)
    points = [Point(0.0, 0.0, right / len(order))] if order else []
    for position, i in enumerate(order):
        right += int(teacher[i]) - int(student[i])
        following = order[position + 1] if position + 1 < len(order) else None
        if following is not None and confidence[following] == confidence[i]:
            continue
        cut = confidence[following] if following is not None else 1.0
        points.append(Point(cut, (position + 1) / len(order), right / len(order)))
    return tuple(points)


def choose(points: Sequence[Point], rows: int) -> Point:
    """The least handed over whose accuracy is within one standard error of the best (Breiman et al. 1984's rule)."""
    best = max(points, key=lambda p: p.accuracy)
    error = (best.accuracy * (1 - best.accuracy) / max(1, rows)) ** 0.5
    return min(
        (p for p in points if p.accuracy >= best.accuracy - error), key=lambda p: p.handed_over
    )


def evaluate(
    validation: tuple[Sequence[float], Sequence[bool], Sequence[bool]],
    test: tuple[Sequence[float], Sequence[bool], Sequence[bool]],
) -> HybridResult:
    """Fix the cut on validation, read it off the test set.

    Args:
        validation: confidence, student right, teacher right, one entry a row.
        test: the same of the test set.
    """
    chosen = choose(curve(*validation), len(validation[0]))
    confidence, student, teacher = test
    kept = [c >= chosen.min_confidence for c in confidence]
    right = sum(s if k else t for k, s, t in zip(kept, student, teacher, strict=True))
    return HybridResult(
        min_confidence=chosen.min_confidence,
        validation=chosen,
        handed_over=1 - sum(kept) / len(kept),
        accuracy=rate(right, len(kept)),
        student_alone=rate(sum(student), len(student)),
        teacher_alone=rate(sum(teacher), len(teacher)),
        curve=curve(*test),
    )
