"""Parts of the traffic in which the student does worse than in the rest, the worst first. Pure.

What a slice is told by: the input's length, language and topic, which need its text and so are read off a sample of the
pairs; the teacher's class and the segment, which are counted over all pairs. All slices are tested together.
"""

import random
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from monitoring.intervals import holm, wilson
from router.difficulty import language_of

MIN_SLICE_ROWS = 8
"""Smaller slices are not reported: their intervals say nothing."""
SAMPLED_PAIRS, TEXT_CHARACTERS = 5_000, 2_000
"""Pairs whose text is kept, and how much of it: at most 10 MB of ASCII a route and adapter."""
TOPICS, ROWS_A_TOPIC, TOPIC_WORDS = 8, 40, 3


@dataclass(frozen=True, slots=True)
class Share:
    """A share with its Wilson 95 % interval."""

    count: int
    rows: int
    share: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, rows: int) -> "Share":
        """`count` of `rows`."""
        low, high = wilson(count, rows)
        return cls(count, rows, count / rows if rows else 0.0, low, high)


@dataclass(frozen=True, slots=True)
class Slice:
    """Disagreement in one part of the traffic. `p_value` is against the rest, Holm-adjusted over all slices."""

    name: str
    value: str
    disagreement: Share
    p_value: float


class Sampled(NamedTuple):
    """One comparable pair of the sample."""

    is_bad: bool
    text: str


class Counted(NamedTuple):
    """A slice before it is tested: its own counts, and those of all pairs that it was cut from."""

    name: str
    value: str
    bad: int
    rows: int
    all_bad: int
    all_rows: int


class PairSample:
    """A uniform sample of comparable pairs (Vitter 1985, algorithm R): the same pairs give the same sample."""

    def __init__(self, size: int = SAMPLED_PAIRS) -> None:
        self._size = size
        self._draws = random.Random(0)
        self._seen = 0
        self._kept: list[Sampled] = []

    def add(self, is_bad: bool, text: Callable[[], str]) -> None:
        """Take the next pair; its text is asked for only when the pair is kept."""
        self._seen += 1
        if len(self._kept) < self._size:
            self._kept.append(Sampled(is_bad, text()[:TEXT_CHARACTERS]))
            return
        place = int(self._draws.random() * self._seen)
        if place < self._size:
            self._kept[place] = Sampled(is_bad, text()[:TEXT_CHARACTERS])

    def slices(self) -> list[Counted]:
        """By length, language and topic."""
        texts = [pair.text for pair in self._kept]
        bad = [pair.is_bad for pair in self._kept]
        columns: dict[str, Sequence[str | None]] = {
            "length": [length_of(text) for text in texts],
            "language": [language_of(text) for text in texts],
            "topic": topics_of(texts),
        }
        return [
            slice_
            for name, values in columns.items()
            for slice_ in counted(name, zip(values, bad, [1] * len(bad), strict=True))
        ]


def counted(name: str, rows: Iterable[tuple[str | None, bool, int]]) -> list[Counted]:
    """Slices of rows (value, bad, how many); rows without a value are in no slice but among all."""
    bad: dict[str | None, int] = defaultdict(int)
    size: dict[str | None, int] = defaultdict(int)
    for value, is_bad, times in rows:
        bad[value] += times * is_bad
        size[value] += times
    all_bad, all_rows = sum(bad.values()), sum(size.values())
    return [
        Counted(name, value, bad[value], size[value], all_bad, all_rows)
        for value in size
        if value is not None and MIN_SLICE_ROWS <= size[value] < all_rows
    ]


def ranked(found: Sequence[Counted]) -> tuple[Slice, ...]:
    """Slices, the worst first; each is tested against the rest by Fisher's exact test, one-sided."""
    p_values = []
    for c in found:
        rest_bad, rest = c.all_bad - c.bad, c.all_rows - c.rows
        table = [[c.bad, c.rows - c.bad], [rest_bad, rest - rest_bad]]
        p_values.append(float(stats.fisher_exact(table, alternative="greater").pvalue))
    result = [
        Slice(c.name, c.value, Share.of(c.bad, c.rows), p)
        for c, p in zip(found, holm(p_values), strict=True)
    ]
    return tuple(sorted(result, key=lambda s: (s.p_value, -s.disagreement.share)))


def length_of(text: str) -> str:
    """A band of lengths."""
    words = len(text.split())
    return "1-14 words" if words < 15 else "15-50 words" if words <= 50 else "over 50 words"


def topics_of(texts: Sequence[str], seed: int = 0) -> list[str | None]:
    """A topic of each text, named by its most telling words: k-means over TF-IDF, which knows nothing of agreement.

    None for all where there are too few texts, or too few words that texts share.
    """
    count = min(TOPICS, len(texts) // ROWS_A_TOPIC)
    if count < 2:
        return [None] * len(texts)
    # Imported here: what only counts pairs needs no scikit-learn.
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    reader = TfidfVectorizer(
        sublinear_tf=True, min_df=3, max_df=0.25, max_features=4_000, token_pattern=r"[^\W\d_]{3,}"
    )
    try:
        points = reader.fit_transform(texts)
    except ValueError:  # no word is in three texts and not in a quarter of all
        return [None] * len(texts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct texts than topics
        model = KMeans(count, n_init=2, random_state=seed).fit(points)
    words = reader.get_feature_names_out()
    names = [
        ", ".join(words[i] for i in np.argsort(-center, kind="stable")[:TOPIC_WORDS])
        for center in model.cluster_centers_
    ]
    return [names[label] for label in model.labels_]
