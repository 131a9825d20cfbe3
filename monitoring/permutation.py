"""Which columns of two windows differ, tested together: one set of shuffles for all columns. Pure; numpy only.

Rows are shuffled between the windows, whole, so that columns stay as correlated as they are; the smallest p-value of each
shuffle is what the observed ones are held against (Westfall and Young 1993, single step). The chance that *any* column
alarms without a difference is then at most the level, for any counts, ties and correlations; and unlike Holm's
correction, seven columns that all measure length are not charged seven times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHUFFLES = 1_999
"""Among eleven columns the smallest adjusted p-value that can come out is then about 11 / 2,000."""
BINS = 64
"""Places at which two distributions of numbers are compared."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tested:
    """One column: its own p-value, and that adjusted over all columns."""

    p_value: float
    adjusted: float


def joint_tests(
    columns: Mapping[str, NDArray[np.generic]],
    before: int,
    generator: np.random.Generator,
    shuffles: int = SHUFFLES,
) -> dict[str, Tested]:
    """Test every column of two windows.

    Args:
        columns: by name, the rows of both windows, the earlier window's first: numbers `[rows]`, classes as strings or
            objects `[rows]`, or embeddings `[rows, dimensions]`.
        before: rows of the earlier window.

    Returns:
        By name. A column that is constant has p = 1.
    """
    rows = len(next(iter(columns.values())))
    marks = np.zeros((rows, shuffles + 1), dtype=np.uint8)
    marks[before:, 0] = 1
    # The first column is what was observed; it counts as one of the shuffles.
    marks[:, 1:] = generator.permuted(np.repeat(marks[:, 0][None], shuffles, axis=0), axis=1).T
    own = np.stack([_p_values(_statistic(values, marks)) for values in columns.values()])
    smallest = np.sort(own.min(axis=0))
    adjusted = np.searchsorted(smallest, own[:, 0], side="right") / (shuffles + 1)
    return {
        name: Tested(float(p), float(joint))
        for name, p, joint in zip(columns, own[:, 0], adjusted, strict=True)
    }


def _p_values(statistic: Floats) -> Floats:
    """Of each shuffle among all of them: the share whose statistic is at least as large."""
    rounded = np.round(statistic, 9)  # equal statistics differ in their last bits
    below = np.searchsorted(np.sort(rounded), rounded, side="left")
    return np.asarray(1 - below / len(rounded))


def _statistic(values: NDArray[np.generic], marks: NDArray[np.uint8]) -> Floats:
    """Of each shuffle; larger is more different."""
    if values.ndim == 2:
        return mean_shift(values.astype(np.float64), marks)
    if values.dtype.kind in "OUS":
        _, codes = np.unique(values.astype(str), return_inverse=True)
        return chi_square(codes, marks)
    return anderson_darling(values.astype(np.float64), marks)


def anderson_darling(values: Floats, marks: NDArray[np.uint8]) -> Floats:
    """Squared gaps of the two distribution functions, those of the tails weighted up (Anderson and Darling 1952).

    Args:
        values: `[rows]`.
        marks: `[rows, shuffles]`, 1 for a row of the later window.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    # Only the last row of equal values is a place where the functions can be compared.
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) + 1
    if len(ends) < 2:
        return np.zeros(marks.shape[1])
    wanted = np.linspace(0, len(values), BINS + 1)[1:-1]
    cuts = np.unique(ends[np.minimum(np.searchsorted(ends, wanted), len(ends) - 2)])
    counts = _sums(marks[order], np.append(0, cuts))[:-1].cumsum(axis=0)
    later = int(marks[:, 0].sum())
    share = cuts / len(values)
    gap = (counts / later - share[:, None]) ** 2
    mass = np.diff(np.append(0, cuts)) / len(values)
    return np.asarray(((mass / (share * (1 - share)))[:, None] * gap).sum(axis=0))


def chi_square(codes: NDArray[np.intp], marks: NDArray[np.uint8]) -> Floats:
    """Pearson's statistic of two class mixes. `codes`: `[rows]`, classes as numbers from 0."""
    total = np.bincount(codes).astype(np.float64)
    if len(total) < 2:
        return np.zeros(marks.shape[1])
    order = np.argsort(codes, kind="stable")
    begins = np.append(0, total.cumsum()[:-1]).astype(np.intp)
    counts = _sums(marks[order], begins)
    expected = (total * (marks[:, 0].sum() / len(codes)))[:, None]
    gap = (counts - expected) ** 2
    return np.asarray((gap / expected + gap / (total[:, None] - expected)).sum(axis=0))


def mean_shift(points: Floats, marks: NDArray[np.uint8]) -> Floats:
    """Squared distance of the windows' mean embeddings, each dimension in units of its spread. `points`: `[rows, d]`."""
    spread = points.std(axis=0)
    kept = spread > 1e-12
    scaled = ((points - points.mean(axis=0))[:, kept] / spread[kept]).astype(np.float32)
    return np.asarray(((scaled.T @ marks.astype(np.float32)) ** 2).sum(axis=0), dtype=np.float64)


def _sums(marks: NDArray[np.uint8], begins: Sequence[int] | NDArray[np.intp]) -> Floats:
    """Marks of consecutive groups of rows: `[groups, shuffles]`."""
    return np.add.reduceat(marks, begins, axis=0, dtype=np.float64)
