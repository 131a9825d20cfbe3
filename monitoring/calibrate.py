"""Which requests the student may answer alone: thresholds whose promise holds at a finite number of pairs. Pure.

Learn then Test (Angelopoulos, Bates, Candès, Jordan and Lei, arXiv 2110.01052) by fixed-sequence testing. The pairs are
split by a hash. The *search* part draws a path of thresholds, each letting the student answer more than the one before,
and says where on it the evidence is strongest; the *test* part walks the path from there, bolder and bolder, and stops
at the first threshold whose hypothesis "the student differs from the teacher on more than `limit` of what it answers"
is not rejected at `delta`. The chance that any accepted threshold breaks the limit is at most `delta`.

Where to start matters. Fewer than ln(delta) / ln(1 - limit) kept pairs can never reject, so a sequence that starts at
the safest threshold ends before it began. The start is taken from the search part, so that it does not depend on what
is tested.

The promise is about one calibration on traffic like the pairs; calibrating again and again until it pleases is not covered.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from monitoring.counterfactual import Estimate, effective_size, weighted_share

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SEARCH_SHARE = 1 / 3
"""Share of the pairs that the search part gets. Measured: a half costs 5 points of the student's share at 1,000 pairs, a
quarter nothing; the difficulty model is trained on this part too."""
STEPS = 100
"""Confidence floors on the path, at equal steps of the student's share."""
EASY_SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of requests that a difficulty cut may let through."""
SHARE_FOR_CALLS = 0.01
"""Share of the student's answers that may be given up for a difficulty cut that spares calls of the student in vain."""
PROMISE_MARGIN = 0.25
"""The suggestion's p-value is at most this part of delta, though all accepted ones keep the promise: the boldest accepted
threshold lies by construction at the edge, where a later check on as many pairs has noise of its own and fails often."""
WORTH_THINNING = 0.6
"""Thinning must leave so much of the effective sample size."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Requests that both answered, one entry each.

    Attributes:
        confidence: the student's, 0-1; NaN where it gave none.
        difficulty: the scored model's, 0-1; zeros when none is used.
        wrong: whether the student differs from the teacher.
        may_serve: False where the router would have sent the teacher's answer whatever the thresholds (guard, error, rules).
        weight: 1 over the probability of being a pair.
        luck: uniform on 0-1, fixed for each pair.
    """

    confidence: Floats
    difficulty: Floats
    wrong: Bools
    may_serve: Bools
    weight: Floats
    luck: Floats

    def __len__(self) -> int:
        return len(self.wrong)

    def part(self, where: npt.NDArray[Any]) -> "Pairs":
        """The pairs where `where` holds, or at those places."""
        return Pairs(*(getattr(self, name)[where] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Point:
    """One pair of thresholds; None does not look at that figure."""

    min_confidence: float | None
    max_difficulty: float | None

    def asked(self, pairs: Pairs) -> Bools:
        """Requests that the student is asked for."""
        if self.max_difficulty is None:
            return np.ones(len(pairs), dtype=bool)
        return pairs.difficulty <= self.max_difficulty

    def kept(self, pairs: Pairs) -> Bools:
        """Requests whose answer is the student's."""
        kept = pairs.may_serve & self.asked(pairs)
        if self.min_confidence is not None:
            kept &= (
                pairs.confidence >= self.min_confidence
            )  # NaN is below every floor, as in the router
        return kept


@dataclass(frozen=True, slots=True)
class Step:
    """One threshold on the test part. Shares are of all requests, disagreement of what the student answers."""

    point: Point
    share: float
    asked_share: float
    disagreement: Estimate | None
    p_value: float
    accepted: bool = False


@dataclass(frozen=True, slots=True)
class Calibration:
    """What can be promised. `chosen` is None when nothing can; `why_not` then says why."""

    limit: float
    confidence: float
    search_pairs: int
    test_pairs: int
    least_pairs: int
    """Pairs that the student must answer, without one disagreement, before anything can be promised."""
    weighted: bool
    chosen: Step | None
    why_not: str | None
    curve: tuple[Step, ...]
    """The whole path on the test part, safest first."""


def least_pairs(limit: float, delta: float) -> int:
    """Pairs without one disagreement that just reject: ceil(ln delta / ln(1 - limit)); 45 at 5 % and 0.10."""
    return math.ceil(math.log(delta) / math.log1p(-limit))


def p_value(pairs: Pairs, limit: float) -> float:
    """Valid p-value of "the weighted share of wrong among these pairs is above `limit`"; 1 without pairs.

    Equal weights: the exact binomial, P(Bin(n, limit) <= k). Unequal ones: pairs are thinned to the least probability
    among them, by their own fixed `luck`, and what is left is binomial again. Where thinning would waste much (few heavy
    pairs among many light ones), a bet instead. Which of the two is said by weights alone, never by who was wrong.
    """
    if len(pairs) == 0:
        return 1.0
    scaled = pairs.weight / pairs.weight.max()
    if scaled.sum() < WORTH_THINNING * effective_size(scaled):
        return _bet(pairs.wrong, scaled, limit)
    left = pairs.wrong[pairs.luck < scaled]
    return float(special.bdtr(int(left.sum()), len(left), limit))


def _bet(wrong: Bools, scaled: Floats, limit: float) -> float:
    """A p-value by betting against the hypothesis.

    Each pair pays v (limit - wrong), v its weight over the largest, which has no positive mean under the hypothesis, so the
    product of 1 + stake * payoff, mixed over stakes fixed beforehand, is an e-value, and 1 over it a p-value (Waudby-Smith
    and Ramdas, JRSSB 2024; Markov).
    """
    values, inverse = np.unique(scaled, return_inverse=True)
    bad = np.bincount(inverse, weights=wrong, minlength=len(values))
    good = np.bincount(inverse, minlength=len(values)) - bad
    stakes = np.linspace(0.05, 0.95, 19) / (1 - limit)
    log_wealth = (
        np.log1p(np.outer(stakes, values * limit)) @ good
        + np.log1p(-np.outer(stakes, values * (1 - limit))) @ bad
    )
    top = float(log_wealth.max())
    log_mean = top + math.log(float(np.exp(log_wealth - top).mean()))
    return math.exp(min(0.0, -log_mean))


def _share(where: Bools, weight: Floats) -> float:
    total = float(weight.sum())
    return float(weight[where].sum()) / total if total else 0.0


def _measured(point: Point, pairs: Pairs, limit: float) -> Step:
    kept = point.kept(pairs)
    wrong, weight = pairs.wrong[kept], pairs.weight[kept]
    return Step(
        point,
        _share(kept, pairs.weight),
        _share(point.asked(pairs), pairs.weight),
        weighted_share(wrong, weight),
        p_value(pairs.part(kept), limit),
    )


def _floors(confidence: Floats) -> list[float]:
    """Confidence floors from the highest to the lowest, at equal steps of share."""
    known = confidence[~np.isnan(confidence)]
    if not len(known):
        return []
    shares = np.arange(1, STEPS + 1) / STEPS
    found = np.quantile(known, 1 - shares, method="lower")
    return sorted({float(f) for f in found}, reverse=True)


def path(pairs: Pairs, limit: float, delta: float) -> list[Point]:
    """Thresholds from the safest to the boldest, by the search part alone.

    One difficulty cut holds for the whole path: the strictest whose best share is within `SHARE_FOR_CALLS` of the best
    of all. Without confidences the path is one of difficulty cuts.
    """
    floors = _floors(pairs.confidence[pairs.may_serve])
    has_difficulty = len(pairs) > 0 and float(np.ptp(pairs.difficulty)) > 0
    if not floors:
        if not has_difficulty:
            return []
        cuts = np.quantile(pairs.difficulty, np.arange(1, STEPS + 1) / STEPS, method="lower")
        return [Point(None, float(c)) for c in sorted({float(c) for c in cuts})]
    plain = [Point(floor, None) for floor in floors]
    if not has_difficulty:
        return plain
    paths = [plain]
    for easy in EASY_SHARES[1:]:
        cut = float(np.quantile(pairs.difficulty, easy, method="lower"))
        paths.append([Point(floor, cut) for floor in floors])
    shares = [_best_share(points, pairs, limit, delta) for points in paths]
    best = max(shares)
    if best == 0:  # nothing is promising: no reason for a cut
        return plain
    return [p for p, s in zip(paths, shares, strict=True) if s >= best - SHARE_FOR_CALLS][-1]


def _best_share(points: Sequence[Point], pairs: Pairs, limit: float, delta: float) -> float:
    best = 0.0
    for point in points:
        kept = point.kept(pairs)
        share = _share(kept, pairs.weight)
        if share > best and p_value(pairs.part(kept), limit) <= delta:
            best = share
    return best


def calibrate(
    search: Pairs, points: Sequence[Point], test: Pairs, *, limit: float, confidence: float
) -> Calibration:
    """Walk the path on the test part from where the search part is surest.

    Args:
        points: the path, from `path(search, …)`.
        limit: disagreement that is allowed among the student's answers, 0-1 exclusive.
        confidence: of the promise, 0-1 exclusive; delta is 1 minus it.

    Raises:
        ValueError: limit or confidence is not between 0 and 1.
    """
    for name, value in (("max-disagreement", limit), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name} = {value:g}: allowed: between 0 and 1, both excluded")
    delta = 1 - confidence
    steps = [_measured(p, test, limit) for p in points]
    before = [_measured(p, search, limit).p_value for p in points]
    start = int(np.argmin(before)) if before else 0
    end = start
    while end < len(steps) and steps[end].p_value <= delta:
        end += 1
    curve = tuple(
        Step(s.point, s.share, s.asked_share, s.disagreement, s.p_value, start <= i < end)
        for i, s in enumerate(steps)
    )
    sure = [s for s in curve if s.accepted and s.p_value <= PROMISE_MARGIN * delta]
    chosen = max(sure, key=lambda s: s.share) if sure else None
    least = least_pairs(limit, delta)
    return Calibration(
        limit, confidence, len(search), len(test), least,
        len(test) > 0 and bool(np.ptp(test.weight) > 1e-12 * test.weight.max()),
        chosen, None if chosen else _why_not(curve, start, least, limit, confidence), curve,
    )  # fmt: skip


def _why_not(curve: Sequence[Step], start: int, least: int, limit: float, confidence: float) -> str:
    """Why nothing is suggested, in words for a person."""
    if not curve:
        return "no pair has a confidence of the student, and no difficulty model could be trained"
    most = max((s.disagreement.ess for s in curve if s.disagreement is not None), default=0.0)
    if most < least:
        return f"too few pairs: as good as {most:.0f} are tested, and {least} without one disagreement are the least"
    best = min((s.p_value for s in curve if s.accepted), default=None)
    if best is not None:
        return (
            f"only just shown (p = {best:.2g}): a suggestion takes p <= {PROMISE_MARGIN * (1 - confidence):.2g}, "
            "so that a later check does not fail by chance; more pairs are needed"
        )
    found = curve[start].disagreement
    seen = (
        f"{100 * found.value:.1f} % of as good as {found.ess:.0f} pairs disagree"
        if found
        else "no pair is tested"
    )
    return f"where the student is surest, {seen}: that does not show less than {100 * limit:g} %"
