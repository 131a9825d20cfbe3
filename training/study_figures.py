"""The study's arithmetic: thresholds, accuracies, tests over seeds, the hybrid's cut. Pure.

A score is log-odds for "yes". Labels are booleans, one a row, in the same order as scores. A mix is the share of "yes"
where the answers are used; rows are weighted to it where the rows at hand have another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from training.metrics import Rate, rate
from training.priors import threshold_for as threshold_for

Vector = np.ndarray
"""[rows], floats or booleans."""
Numbers = Sequence[float] | np.ndarray
"""[rows], one number a row."""
Bits = Sequence[bool] | np.ndarray
"""[rows], one truth value a row."""


def mix_weights(labels: Bits, mix: float) -> Vector:
    """[rows] weights that give "yes" rows the share `mix`; they sum to 1."""
    yes = np.asarray(labels, dtype=bool)
    ones, zeros = max(1, int(yes.sum())), max(1, int((~yes).sum()))
    return np.asarray(np.where(yes, mix / ones, (1 - mix) / zeros))


def best_threshold(scores: Numbers, labels: Bits, mix: float, near: float) -> float:
    """The threshold with the best accuracy on these rows, weighted to `mix`; of equals the one closest to `near`."""
    order = np.argsort(scores, kind="stable")
    ranked = np.asarray(scores, dtype=float)[order]
    weights = mix_weights(labels, mix)[order]
    yes = np.asarray(labels, dtype=bool)[order]
    # With the threshold below row i, rows before it are "no": right are their "no" rows and the later "yes" rows.
    below = np.concatenate([[0.0], np.cumsum(np.where(yes, 0.0, weights))])
    above = np.concatenate([[0.0], np.cumsum(np.where(yes, weights, 0.0))])
    accuracy = below + above[-1] - above
    ends = np.concatenate([[ranked[0] - 1.0], ranked, [ranked[-1] + 1.0]])
    low, high = ends[:-1], ends[1:]
    possible = high > low  # no threshold lies between equal scores
    allowed = possible & (accuracy >= accuracy[possible].max() - 1e-12)
    middle = np.clip(near, low + (high - low) * 0.05, high - (high - low) * 0.05)
    gaps = np.where(allowed, np.abs(middle - near), np.inf)
    return float(middle[int(gaps.argmin())])


def auc(scores: Numbers, labels: Bits) -> float:
    """Area under the ROC curve: how often a "yes" row has a higher score than a "no" row (ties count half)."""
    yes = np.asarray(labels, dtype=bool)
    ones, zeros = int(yes.sum()), int((~yes).sum())
    if not ones or not zeros:
        return 0.5
    ranks = rankdata(scores)
    return float((ranks[yes].sum() - ones * (ones + 1) / 2) / (ones * zeros))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answerer's answers on one test set."""

    accuracy: Rate
    balanced_accuracy: float
    auc: float | None
    right: tuple[bool, ...]


def outcome(answers: Bits, labels: Bits, scores: Numbers | None = None) -> Outcome:
    """Figures of yes/no answers against labels."""
    said, yes = np.asarray(answers, dtype=bool), np.asarray(labels, dtype=bool)
    right = said == yes
    each = [float(right[yes == value].mean()) for value in (True, False) if (yes == value).any()]
    return Outcome(
        rate(int(right.sum()), len(right)),
        sum(each) / len(each),
        auc(scores, labels) if scores is not None else None,
        tuple(bool(r) for r in right),
    )


@dataclass(frozen=True, slots=True)
class Gap:
    """One answerer's mean over seeds less another's, on the same rows, as shares.

    `low` and `high`: 95 % bootstrap over rows. `p_value`: two-sided sign-flip permutation test over rows.
    """

    difference: float
    low: float
    high: float
    p_value: float


def seeds_gap(runs: Sequence[Bits], others: Sequence[Bits], draws: int = 10_000) -> Gap:
    """Compare two answerers that were each run once or with several seeds; a row is the unit, seeds are averaged in it.

    With one run each the permutation test is McNemar's test, drawn instead of computed.
    """
    gap = np.asarray(runs, dtype=float).mean(axis=0) - np.asarray(others, dtype=float).mean(axis=0)
    generator = np.random.default_rng(0)
    differ = gap[gap != 0]
    signs = generator.integers(0, 2, size=(draws, len(differ))) * 2 - 1
    flipped = np.abs(signs @ differ)
    p_value = (1 + int((flipped >= abs(differ.sum()) - 1e-9).sum())) / (1 + draws)
    means = gap[generator.integers(0, len(gap), size=(2000, len(gap)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Gap(float(gap.mean()), float(low), float(high), p_value)


def joint_confidence(
    scores: Numbers, threshold: float, rival: Numbers, rival_threshold: float
) -> Vector:
    """[rows] how sure student and TF-IDF together are of the *student's* answer, log-odds; below 0 they lean the other way."""
    student = np.asarray(scores, dtype=float) - threshold
    both = student + np.asarray(rival, dtype=float) - rival_threshold
    return np.asarray(np.where(student > 0, both, -both))


def cut_for(confidence: Numbers, labels: Bits, mix: float, share: float) -> float:
    """The confidence below which `share` of these rows lie, when they are weighted to `mix`."""
    order = np.argsort(confidence, kind="stable")
    covered = np.cumsum(mix_weights(labels, mix)[order])
    place = int(np.searchsorted(covered, share, side="right"))
    ranked = np.asarray(confidence, dtype=float)[order]
    return float(ranked[min(place, len(ranked) - 1)])


@dataclass(frozen=True, slots=True)
class Cascade:
    """Student where it is sure, teacher elsewhere."""

    cut: float
    handed_over: float
    accuracy: Rate
    right: tuple[bool, ...]
    curve: tuple[tuple[float, float], ...]
    """(share handed over, accuracy) of the whole range, for the picture; no figure is picked from it."""


def cascade(confidence: Numbers, student: Bits, teacher: Bits, cut: float) -> Cascade:
    """What a cut gives: rows with less confidence have the teacher's answer.

    Args:
        student: whether the student is right, a row.
        teacher: whether the teacher is.
    """
    sure = np.asarray(confidence, dtype=float)
    mine, theirs = np.asarray(student, dtype=bool), np.asarray(teacher, dtype=bool)
    right = np.where(sure < cut, theirs, mine)
    order = np.argsort(sure, kind="stable")
    gained = np.concatenate([[0], np.cumsum(theirs[order].astype(int) - mine[order].astype(int))])
    curve = [
        (k / len(sure), float((mine.sum() + gain) / len(sure))) for k, gain in enumerate(gained)
    ]
    return Cascade(
        cut,
        float((sure < cut).mean()),
        rate(int(right.sum()), len(right)),
        tuple(bool(r) for r in right),
        tuple(curve),
    )
