"""What more rows would bring: a power law through a size ablation, with intervals, or "not identifiable". Pure.

error(rows) = floor + scale * rows ** -exponent (Hestness et al. 2017, "Deep learning scaling is predictable,
empirically", arXiv 1712.00409). For each floor on a grid the rest is a line in logarithms; the floor with the least
squared error is taken. Intervals: the means are drawn anew with the seeds' spread and the law is fitted to each draw.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

DRAWS = 400
WORTH = 0.01
"""Gain (a share) from doubling the rows that is worth having."""
FLOOR_GRID = np.linspace(0.0, 0.98, 99)

Verdict = Literal["more data", "better data or a bigger model", "undecided", "not identifiable"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Law:
    """The fitted curve and what it says; the numbers are None when it is not identifiable."""

    identifiable: bool
    why: str
    exponent: Interval | None
    floor: Interval | None
    at_twice: Interval | None
    """Error at twice the largest size."""
    at_five_times: Interval | None
    gain_at_twice: Interval | None
    """Error at the largest size (as fitted) less error at twice of it."""
    rows_for_a_point: float | None
    """Rows to add until the error is one point less; None when the curve never gets there."""
    verdict: Verdict
    decision: str


def curve(parameters: tuple[float, float, float], rows: np.ndarray | float) -> np.ndarray:
    """Errors at these sizes; `parameters` is (floor, scale, exponent)."""
    floor, scale, exponent = parameters
    return np.asarray(floor + scale * np.asarray(rows, dtype=float) ** -exponent)


def fit(sizes: Sequence[float], errors: Sequence[float]) -> tuple[float, float, float]:
    """(floor, scale, exponent) with the least squared error; errors must be above 0."""
    floor, scale, exponent = fit_many(sizes, np.asarray([errors], dtype=float))[0]
    return float(floor), float(scale), float(exponent)


def fit_many(sizes: Sequence[float], errors: np.ndarray) -> np.ndarray:
    """[curves, 3] as `fit`, of [curves, sizes] errors: all curves and floors in one go."""
    rows = np.log(np.asarray(sizes, dtype=float))
    centred = rows - rows.mean()
    floors = errors.min(axis=1, keepdims=True) * FLOOR_GRID
    logs = np.log(errors[:, None, :] - floors[:, :, None])
    slopes = logs @ centred / (centred @ centred)
    starts = logs.mean(axis=2) - slopes * rows.mean()
    fitted = floors[:, :, None] + np.exp(starts[:, :, None] + slopes[:, :, None] * rows)
    missed = ((fitted - errors[:, None, :]) ** 2).sum(axis=2)
    best = missed.argmin(axis=1)
    each = np.arange(len(errors))
    return np.stack([floors[each, best], np.exp(starts[each, best]), -slopes[each, best]], axis=1)


def law(runs: Mapping[int, Sequence[float]], *, worth: float = WORTH, seed: int = 0) -> Law:
    """The law of an ablation.

    Args:
        runs: rows → the error (a share) of each seed at that size.
        worth: gain from doubling that is worth having.
    """
    dumb = sorted(n for n, errors in runs.items() if min(errors) >= 1)
    runs = {n: errors for n, errors in runs.items() if n not in dumb}
    sizes = sorted(runs)
    refused = _refusal(runs, sizes)
    if refused:
        # A size at which every answer is wrong says nothing of the slope, and its seeds agree for no good reason.
        told = f" (at {', '.join(map(str, dumb))} rows no answer is right)" if dumb else ""
        return _unknown(refused + told)
    generator = np.random.default_rng(seed)
    means = [max(float(np.mean(runs[n])), 1e-4) for n in sizes]
    fitted = fit(sizes, means)
    # Student's t with the spread of all sizes together: three seeds drawn anew would give intervals that are too narrow.
    freedom = sum(len(runs[n]) - 1 for n in sizes)
    spread = np.sqrt(sum(np.var(runs[n]) * len(runs[n]) for n in sizes) / freedom)
    scale = spread / np.sqrt([len(runs[n]) for n in sizes])
    means_drawn = np.asarray(means) + scale * generator.standard_t(
        freedom, size=(DRAWS, len(sizes))
    )
    drawn = [
        (float(f), float(c), float(e)) for f, c, e in fit_many(sizes, np.maximum(means_drawn, 1e-4))
    ]
    largest = sizes[-1]

    def interval(value: float, values: Sequence[float]) -> Interval:
        low, high = np.quantile(values, [0.025, 0.975])
        return Interval(value, float(low), float(high))

    exponent = interval(fitted[2], [d[2] for d in drawn])
    if exponent.low <= 0:
        return _unknown(
            f"the exponent's interval [{exponent.low:.2f}, {exponent.high:.2f}] holds 0: the points do not show that "
            "the error falls with more rows"
        )

    def error_at(times: float) -> Interval:
        value = float(curve(fitted, times * largest))
        return interval(value, [float(curve(d, times * largest)) for d in drawn])

    def gain(parameters: tuple[float, float, float]) -> float:
        return float(curve(parameters, largest) - curve(parameters, 2 * largest))

    gained = interval(gain(fitted), [gain(d) for d in drawn])
    verdict, decision = _decide(gained, worth, largest)
    return Law(
        True, "", exponent, interval(fitted[0], [d[0] for d in drawn]), error_at(2), error_at(5), gained,
        _rows_for(fitted, largest, 0.01), verdict, decision,
    )  # fmt: skip


def _refusal(runs: Mapping[int, Sequence[float]], sizes: Sequence[int]) -> str:
    if len(sizes) < 4:
        return f"{len(sizes)} sizes; a law of three numbers needs at least 4"
    few = min(len(runs[n]) for n in sizes)
    if few < 3:
        return f"{few} seeds at some size; intervals need at least 3"
    first, last = np.asarray(runs[sizes[0]]), np.asarray(runs[sizes[-1]])
    spread = float(np.sqrt(first.var(ddof=1) / len(first) + last.var(ddof=1) / len(last)))
    drop = float(first.mean() - last.mean())
    if drop <= 2 * spread:
        return (
            f"from the smallest to the largest size the error falls by {100 * drop:.1f} points, and seeds alone move it by "
            f"{200 * spread:.1f}"
        )
    return ""


def _unknown(why: str) -> Law:
    return Law(
        False, why, None, None, None, None, None, None, "not identifiable",
        f"Not identifiable: {why}. Add seeds, validation rows or smaller sizes before buying rows.",
    )  # fmt: skip


def _decide(gain: Interval, worth: float, largest: int) -> tuple[Verdict, str]:
    shown = (
        f"twice the rows ({2 * largest:,}) would bring {100 * gain.value:.1f} points "
        f"[{100 * gain.low:.1f}, {100 * gain.high:.1f}]"
    )
    if gain.low >= worth:
        return "more data", f"More data: {shown}, at least the {100 * worth:.1f} that are worth it."
    if gain.high < worth:
        return (
            "better data or a bigger model",
            f"No more data of this kind: {shown}, below the {100 * worth:.1f} that are worth it. Better labels, other rows "
            "or a bigger model are what is left.",
        )
    return (
        "undecided",
        f"Undecided: {shown}; the interval holds the {100 * worth:.1f} that are worth it.",
    )


def _rows_for(parameters: tuple[float, float, float], largest: int, points: float) -> float | None:
    floor, scale, exponent = parameters
    wanted = float(curve(parameters, largest)) - points
    if wanted <= floor:
        return None
    return float((scale / (wanted - floor)) ** (1 / exponent) - largest)
