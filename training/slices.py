"""Parts of a set of rows that share something, and whether a student errs more often in them than elsewhere.

Pure: names and truth values in, tables out. Whose rows they are and what wrong means, `mistakes` and `eval_slices` know.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer

from monitoring.intervals import holm
from training.metrics import Rate, rate

LEAST_ROWS = 8
"""Smaller slices are not tested: nothing could be shown on them."""
Members = Mapping[str, np.ndarray]
"""Name of a slice to [rows], which rows are in it."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows that share something, and how often the student is wrong on them."""

    name: str
    errors: Rate
    elsewhere: Rate
    p_value: float
    """One-sided Fisher test against the other rows, corrected by Holm over all slices that were tested."""


def by_value(what: str, values: Sequence[str]) -> dict[str, np.ndarray]:
    """A slice a value, named `what value`."""
    found = np.array(values)
    return {f"{what} {value}": found == value for value in sorted(set(values))}


def by_length(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """A slice a quarter of the rows, by the characters of their texts."""
    if not texts:
        return {}
    lengths = np.array([len(text) for text in texts])
    ends = map(float, np.quantile(lengths, [0.25, 0.5, 0.75]))
    found = {}
    for low, high in itertools.pairwise([0.0, *ends, float("inf")]):
        if high > low:
            upper = "up" if high == float("inf") else f"{high:.0f}"
            found[f"length {low:.0f}-{upper} characters"] = (lengths >= low) & (lengths < high)
    return found


def by_words(texts: Sequence[str], most: int) -> dict[str, np.ndarray]:
    """A slice a word or pair of words, of the `most` frequent ones that are in at most half of the rows."""
    if not any(text.strip() for text in texts):
        return {}
    counter = TfidfVectorizer(
        binary=True, use_idf=False, norm=None, min_df=min(LEAST_ROWS, len(texts)), max_df=0.5,
        ngram_range=(1, 2), max_features=most,
    )  # fmt: skip
    try:
        matrix = counter.fit_transform(texts).toarray() > 0
    except ValueError:  # no word is frequent enough
        return {}
    return {f"has “{word}”": matrix[:, i] for i, word in enumerate(counter.get_feature_names_out())}


def is_testable(members: np.ndarray) -> bool:
    """Whether there are enough rows in the slice, and beside it."""
    inside = int(members.sum())
    return inside >= LEAST_ROWS and len(members) - inside >= LEAST_ROWS


def tested(named: Members, wrong: np.ndarray) -> list[Slice]:
    """The slices with enough rows, the most suspicious first.

    Args:
        wrong: [rows], on which rows the student is wrong.
    """
    found = []
    for name, members in named.items():
        if not is_testable(members):
            continue
        inside, beside = int(members.sum()), int((~members).sum())
        bad, other = int(wrong[members].sum()), int(wrong[~members].sum())
        table = [[bad, inside - bad], [other, beside - other]]
        p_value = float(stats.fisher_exact(table, alternative="greater").pvalue)
        found.append(Slice(name, rate(bad, inside), rate(other, beside), p_value))
    corrected = holm([one.p_value for one in found])
    result = [
        Slice(one.name, one.errors, one.elsewhere, p)
        for one, p in zip(found, corrected, strict=True)
    ]
    return sorted(result, key=lambda s: (s.p_value, -s.errors.share))
