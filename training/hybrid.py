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
    confidence: Sequence[float],
    student: Sequence[bool],
    teacher: Sequence[bool],
    weights: Sequence[float] | None = None,
) -> tuple[Point, ...]:
    """Every distinct cut, from nothing handed over to everything.

    Args:
        weights: of the rows, where their class mix is not the one that is meant; equal by default.
    """
    order = sorted(range(len(confidence)), key=lambda i: confidence[i])
    each = weights if weights is not None else [1.0] * len(order)
    total = sum(each)
    right = sum(w for w, is_right in zip(each, student, strict=True) if is_right)
    handed = 0.0
    points = [Point(0.0, 0.0, right / total)] if order else []
    for position, i in enumerate(order):
        right += each[i] * (int(teacher[i]) - int(student[i]))
        handed += each[i]
        following = order[position + 1] if position + 1 < len(order) else None
        if following is not None and confidence[following] == confidence[i]:
            continue
        cut = confidence[following] if following is not None else 1.0
        points.append(Point(cut, handed / total if following is not None else 1.0, right / total))
    return tuple(points)


def choose(points: Sequence[Point], rows: float) -> Point:
    """The least handed over whose accuracy is within one standard error of the best (Breiman et al. 1984's rule).

    Args:
        rows: that the points were counted on; weighted rows count as Kish's effective number.
    """
    best = max(points, key=lambda p: p.accuracy)
    error = (best.accuracy * max(0.0, 1 - best.accuracy) / max(1, rows)) ** 0.5
    return min(
        (p for p in points if p.accuracy >= best.accuracy - error), key=lambda p: p.handed_over
    )


def planned(points: Sequence[Point], share: float) -> Point:
    """The cut that hands over as much as may be: a budget, whatever the accuracy on these rows."""
    return max((p for p in points if p.handed_over <= share), key=lambda p: p.handed_over)


def evaluate(
    validation: tuple[Sequence[float], Sequence[bool], Sequence[bool]],
    test: tuple[Sequence[float], Sequence[bool], Sequence[bool]],
    *,
    weights: Sequence[float] | None = None,
    hand_over: float | None = None,
) -> HybridResult:
    """Fix the cut on validation, read it off the test set.

    Args:
        validation: confidence, student right, teacher right, one entry a row.
        test: the same of the test set.
        weights: of the validation rows; equal by default.
        hand_over: share of validation that the cut is planned to hand over; None lets its accuracy decide.
    """
    each = weights if weights is not None else [1.0] * len(validation[0])
    effective = sum(each) ** 2 / sum(w * w for w in each)
    points = curve(*validation, each)
    chosen = choose(points, effective) if hand_over is None else planned(points, hand_over)
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
