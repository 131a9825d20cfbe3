"""The arithmetic of a judge's verdicts: wins, consistency, length, agreement with people. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from monitoring.judge import Judged, Said
from monitoring.judge_calibration import calibrated
from training.metrics import Mean, Rate, mean_of, rate

WINS = {"student": 1.0, "tie": 0.5, "teacher": 0.0}
MIN_ROWS = 10
"""Fewer answers say nothing of length."""


@dataclass(frozen=True, slots=True)
class Pairwise:
    """Student against teacher, both orders taken together."""

    wins: int
    ties: int
    losses: int
    equal: int
    """Of the ties: both said the same text, so nobody was asked."""
    win_rate: Mean
    """A tie counts half."""
    not_worse: Rate
    """Won or tied."""
    consistent: Rate
    """Pairs on which both orders say the same, of those that were asked."""
    favours_first: Rate
    """Of the other pairs: those on which whoever stood first won both times, or won once and tied once."""


@dataclass(frozen=True, slots=True)
class Pointwise:
    """Scores by the rubric, 1-5, and the paired difference of rows that have both."""

    student: Mean
    teacher: Mean
    difference: Mean


@dataclass(frozen=True, slots=True)
class LengthControl:
    """Whether length buys verdicts. None with too few answers, or answers of one length."""

    correlation: float | None
    """Spearman's, of an answer's score with its words, student's and teacher's answers together."""
    p_value: float | None
    win_rate: float | None
    """The student's, at equal length: a logistic model of the wins over the difference in words, read at a difference of 0
    (after Dubois et al. 2024, length-controlled AlpacaEval)."""
    words_more: float
    """Mean words of a student's answer beyond the teacher's."""

    @property
    def favours_length(self) -> bool:
        """Whether longer answers are shown to have better scores, and by more than a little."""
        return self.correlation is not None and self.p_value is not None and self.p_value < 0.05 and self.correlation > 0.2  # fmt: skip


@dataclass(frozen=True, slots=True)
class Agreement:
    """A judge and people on the same pairs: whether the student is worse, and scores."""

    labels: int
    agreed: Rate
    kappa: float | None
    """None without a label."""
    caught: Rate
    """Of those that people call worse: also by the judge."""
    false_alarms: Rate
    """Of those that people do not call worse: by the judge."""
    spearman: float | None
    """Of its scores with people's; with their verdicts where too few gave a score."""
    kendall: float | None


def pairwise(asked: Sequence[tuple[Judged, Said | None, Said | None]], equal: int) -> Pairwise:
    """Figures of pairs that were asked about and of `equal` ones.

    Args:
        asked: the verdict, what was said with the student first, and with the teacher first.
    """
    won = [WINS[j.winner] for j, _, _ in asked if j.winner is not None] + [0.5] * equal
    broken = [said for j, *said in asked if not j.is_consistent]
    return Pairwise(
        wins=won.count(1.0),
        ties=won.count(0.5),
        losses=won.count(0.0),
        equal=equal,
        win_rate=mean_of(won),
        not_worse=rate(len(won) - won.count(0.0), len(won)),
        consistent=rate(len(asked) - len(broken), len(asked)),
        favours_first=rate(sum("A" in said for said in broken), len(broken)),
    )


def pointwise(scores: Sequence[tuple[int | None, int | None]]) -> Pointwise:
    """Means of student's and teacher's scores."""
    both = [(s, t) for s, t in scores if s is not None and t is not None]
    return Pointwise(
        mean_of([s for s, _ in scores if s is not None]),
        mean_of([t for _, t in scores if t is not None]),
        mean_of([s - t for s, t in both]),
    )


def length_control(rows: Sequence[tuple[Judged, int | None, int | None]]) -> LengthControl:
    """Figures of (verdict, student's score, teacher's score)."""
    points = [
        (score, len(text.split()))
        for judged, student, teacher in rows
        for score, text in ((student, judged.pair.student), (teacher, judged.pair.teacher))
        if score is not None
    ]
    gaps = [len(j.pair.student.split()) - len(j.pair.teacher.split()) for j, _, _ in rows]
    won = [(WINS[j.winner], gap) for (j, _, _), gap in zip(rows, gaps, strict=True) if j.winner is not None]  # fmt: skip
    correlation, p_value = _spearman(points)
    return LengthControl(
        correlation, p_value, _at_equal_length(won), float(np.mean(gaps)) if gaps else 0.0
    )


def _spearman(points: Sequence[tuple[float, float]]) -> tuple[float | None, float | None]:
    if len(points) < MIN_ROWS or any(len(set(column)) < 2 for column in zip(*points, strict=True)):
        return None, None
    found = stats.spearmanr(*zip(*points, strict=True))
    return float(found.statistic), float(found.pvalue)


def _at_equal_length(won: Sequence[tuple[float, float]]) -> float | None:
    """Newton's steps on the logistic likelihood, the slope held back by a weak prior so that it exists on any data."""
    if len(won) < MIN_ROWS:
        return None
    y, gap = (np.array(column, dtype=float) for column in zip(*won, strict=True))
    spread = float(gap.std())
    if spread == 0:
        return None
    x = np.stack([np.ones_like(gap), np.tanh(gap / spread)], axis=1)
    prior = np.diag([1e-3, 1e-1])
    weights = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ weights))
        slope = x.T @ (y - p) - prior @ weights
        step = np.linalg.solve(x.T @ (x * (p * (1 - p))[:, None]) + prior, slope)
        weights = weights + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    return 1 / (1 + math.exp(-float(weights[0])))


def agreement(
    worse: Mapping[str, tuple[bool, bool]], scores: Sequence[tuple[int | None, float]]
) -> Agreement:
    """A judge held against people.

    Args:
        worse: pair id to (the judge, the person) on whether the student is worse.
        scores: (the judge, the person) on the student's answer.
    """
    found = calibrated({n: j for n, (j, _) in worse.items()}, {n: p for n, (_, p) in worse.items()})
    both = [(float(j), p) for j, p in scores if j is not None]
    spearman, _ = _spearman(both)
    kendall = float(stats.kendalltau(*zip(*both, strict=True)).statistic) if spearman is not None else None  # fmt: skip
    return Agreement(
        labels=len(worse),
        agreed=rate(found.agreed.count, found.agreed.rows),
        kappa=found.kappa,
        caught=rate(found.caught.count, found.caught.rows),
        false_alarms=rate(found.false_alarms.count, found.false_alarms.rows),
        spearman=spearman,
        kendall=kendall,
    )
