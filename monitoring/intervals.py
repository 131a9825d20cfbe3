"""Confidence intervals of a share. Pure; numpy and scipy only."""

import math

from scipy import stats


def wilson(successes: int, rows: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of `successes` in `rows` (Wilson 1927); (0, 1) without rows."""
    if rows == 0:
        return 0.0, 1.0
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    share = successes / rows
    scale = 1 + z * z / rows
    middle = (share + z * z / (2 * rows)) / scale
    half = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def clopper_pearson(successes: int, rows: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval (Clopper and Pearson 1934); never too narrow. (0, 1) without rows."""
    if rows == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, successes, rows - successes + 1)) if successes else 0.0
    high = (
        float(stats.beta.ppf(1 - tail, successes + 1, rows - successes))
        if successes < rows
        else 1.0
    )
    return low, high


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    worst = 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted
