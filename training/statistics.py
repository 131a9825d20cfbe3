"""Tests for comparing two answerers on the same rows, and how many rows a claim needs. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Z_975 = float(stats.norm.ppf(0.975))


@dataclass(frozen=True, slots=True)
class Paired:
    """Right and wrong of two answerers on the same rows.

    `difference` is the first's share right minus the second's; `low` and `high` its 95 % bootstrap interval.
    """

    only_first: int
    only_second: int
    both: int
    neither: int
    difference: float
    low: float
    high: float
    p_value: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided McNemar p-value: a binomial test on the rows that only one got right (McNemar 1947)."""
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)


def paired(
    first: Sequence[bool], second: Sequence[bool], *, seed: int = 0, draws: int = 2000
) -> Paired:
    """Compare two answerers row by row; the interval is a percentile bootstrap over rows."""
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    gap = one - other
    if not len(gap):
        return Paired(0, 0, 0, 0, 0.0, -1.0, 1.0, 1.0)
    generator = np.random.default_rng(seed)
    means = gap[generator.integers(0, len(gap), size=(draws, len(gap)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Paired(
        only_first=int(((one == 1) & (other == 0)).sum()),
        only_second=int(((one == 0) & (other == 1)).sum()),
        both=int(((one == 1) & (other == 1)).sum()),
        neither=int(((one == 0) & (other == 0)).sum()),
        difference=float(gap.mean()),
        low=float(low),
        high=float(high),
        p_value=mcnemar(first, second),
    )


def is_non_inferior(result: Paired, margin: float) -> bool:
    """Whether the first is shown to be at most `margin` (a share) worse, at a one-sided level of 2.5 %.

    By Tango's score test of a paired difference (Statistics in Medicine 17, 1998), not by the bootstrap interval: of rows on which the
    two never differ, every draw is the same, and ten of them would show anything. This takes 73 of them for 5 points.
    """
    first, second = result.only_first, result.only_second
    rows = first + second + result.both + result.neither
    if not rows:
        return False
    # The most likely share of rows that only the second gets right, if the first were worse by just the margin.
    linear = -first - second - (2 * rows - first + second) * margin
    constant = second * margin * (1 + margin)
    share = (math.sqrt(max(0.0, linear**2 - 8 * rows * constant)) - linear) / (4 * rows)
    variance = rows * (2 * share - margin * (1 + margin))
    gap = first - second + rows * margin
    return gap > 0 and gap >= Z_975 * math.sqrt(max(0.0, variance))


def rows_needed(
    margin: float, discordant_share: float, power: float = 0.8, alpha: float = 0.05
) -> int | None:
    """Rows for a paired non-inferiority test of two equally good answerers; None at a margin of 0, which no number of rows shows.

    Normal approximation: n = (z_{1-alpha/2} + z_{power})^2 * discordant_share / margin^2 (Liu et al. 2002).
    """
    if not margin:
        return None
    z = float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))
    return math.ceil(z * z * discordant_share / (margin * margin))
