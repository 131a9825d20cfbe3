"""Tests that stay valid however often one looks: for rates, for bounded means, for quantiles. Pure.

Each is an e-process or a confidence sequence: under the hypothesis the chance that it *ever* rejects is at most alpha
(Ville's inequality), so a gate may be looked at after every request.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, betaln


def log_e_above(successes: int, rows: int, limit: float, a: float = 1.0, b: float = 1.0) -> float:
    """Log of the e-value against `p <= limit`, by a Beta(a, b) prior cut to (limit, 1].

    E = B(S+a, n-S+b) (1 - I_limit(S+a, n-S+b)) / [B(a, b) (1 - I_limit(a, b)) limit^S (1-limit)^(n-S)]
    (Robbins 1970's mixture; statistics of a one-sided beta-binomial).
    """
    if not 0 < limit < 1:
        raise ValueError(f"limit = {limit}: allowed: between 0 and 1")
    failures = rows - successes
    upper = _log_upper(successes + a, failures + b, limit)
    prior = _log_upper(a, b, limit)
    likelihood = successes * math.log(limit) + failures * math.log1p(-limit)
    return float(betaln(successes + a, failures + b) + upper - betaln(a, b) - prior - likelihood)


def _log_upper(a: float, b: float, x: float) -> float:
    """log(1 - I_x(a, b)), by symmetry where the difference would lose all digits.

    A tail too small for a float is bounded from above by the geometric series over its hypergeometric one (DLMF 8.17.8),
    whose terms shrink at least so fast: such a tail only says that there is no evidence at all.
    """
    tail = float(betainc(b, a, 1 - x))
    if tail > 1e-300:
        return math.log(tail)
    ratio = min((a + b) / (b + 1) * (1 - x), 1 - 1e-9)
    front = b * math.log1p(-x) + a * math.log(x) - math.log(b) - float(betaln(b, a))
    return front - math.log1p(-ratio)


def log_e_below(successes: int, rows: int, limit: float) -> float:
    """Log of the e-value against `p >= limit`: the mirrored process."""
    return log_e_above(rows - successes, rows, 1 - limit)


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence sequence's interval now."""

    low: float
    high: float


def rate_sequence(successes: int, rows: int, alpha: float = 0.05) -> Interval:
    """Beta-binomial confidence sequence of a rate (uniform mixture): {p: marginal / likelihood(p) < 1/alpha}."""
    if rows == 0:
        return Interval(0.0, 1.0)
    log_marginal = float(betaln(successes + 1, rows - successes + 1))
    bound = log_marginal - math.log(1 / alpha)

    def is_inside(p: float) -> bool:
        return successes * math.log(p) + (rows - successes) * math.log1p(-p) > bound

    middle = min(max(successes / rows, 1e-9), 1 - 1e-9)
    return Interval(_edge(is_inside, middle, 1e-12), _edge(is_inside, middle, 1 - 1e-12))


def _edge(is_inside: object, inside: float, outside: float) -> float:
    assert callable(is_inside)
    if is_inside(outside):
        return round(outside)
    for _ in range(60):
        half = (inside + outside) / 2
        if is_inside(half):
            inside = half
        else:
            outside = half
    return outside


def mean_sequence(values: Sequence[float], alpha: float = 0.05) -> Interval:
    """Confidence sequence of the mean of values in [0, 1]: predictable plug-in empirical Bernstein.

    Waudby-Smith and Ramdas, JRSSB 2024, theorem 2.
    """
    if not values:
        return Interval(0.0, 1.0)
    x = np.asarray(values, dtype=float)
    t = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (t + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (t + 1)
    before = np.concatenate([[0.25], variance[:-1]])
    bets = np.minimum(np.sqrt(2 * math.log(2 / alpha) / (before * t * np.log(t + 1))), 0.5)
    psi = -np.log1p(-bets) - bets
    gap = 4 * (x - np.concatenate([[0.5], mean[:-1]])) ** 2
    weight = np.cumsum(bets)
    center = np.cumsum(bets * x) / weight
    half = (math.log(2 / alpha) + np.cumsum(gap * psi / 4)) / weight
    return Interval(float(max(0.0, np.max(center - half))), float(min(1.0, np.min(center + half))))


def quantile_sequence(values: Sequence[float], q: float, alpha: float = 0.05) -> Interval:
    """Confidence sequence of a quantile, without assumptions but independence; each end errs with alpha / 2.

    At the true quantile the values above it are draws of a rate 1 - q, so an end moves past a value when the beta-binomial
    e-process of the count above that value rejects 1 - q: inverting a test at one fixed number needs no bound that holds
    at all of them (Howard and Ramdas, Bernoulli 2022, section 5). At q = 0.95 the upper end is finite from 105 values
    on (alpha 0.05); their corollary 2, uniform over all quantiles, wants 3,200.
    """
    n, rate, threshold = len(values), 1 - q, math.log(2 / alpha)
    if n == 0:
        return Interval(0.0, math.inf)
    descending = np.sort(np.asarray(values, dtype=float))[::-1]
    most = bisect.bisect_left(range(n + 1), 1, key=lambda k: log_e_above(k, n, rate) >= threshold)
    least = bisect.bisect_left(range(n + 1), 1, key=lambda k: log_e_below(k, n, rate) < threshold)
    low = 0.0 if most > n else float(descending[max(0, most - 1)])
    return Interval(low, math.inf if least == 0 else float(descending[min(least, n) - 1]))
