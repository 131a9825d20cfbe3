"""What can be measured of an input text without a model: its size, its form, and how familiar its words are. Pure.

`Reference` holds what is familiar: words, and a small space of topics that texts are placed in. Templates are beginnings that many
texts share.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.difficulty import language_of

_WORDS = re.compile(r"[^\W\d_]+", re.UNICODE)
_DIGITS = re.compile(r"\d+")
_SENTENCE_ENDS = re.compile(r"[.!?]+(\s|$)")
NUMERIC = (
    "characters",
    "words",
    "sentences",
    "upper_share",
    "non_letter_share",
    "unknown_word_share",
    "bits_per_word",
)
"""Columns that are numbers."""
CLASSES = ("language", "template")
"""Columns of a text that are classes."""
TEMPLATE_WORDS, TEMPLATE_SHARE, MIN_TEMPLATE_TEXTS = 2, 0.005, 5
"""A beginning of so many words is a template when so many texts have it."""
TOPIC_DIMENSIONS, HASHED_WORDS = 32, 1 << 14


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words of reference texts and how often they occur: what counts as familiar."""

    counts: Counter[str]
    total: int

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Vocabulary":
        """Count words."""
        counts = Counter(word for text in texts for word in words_of(text))
        return cls(counts, counts.total())

    def bits(self, word: str) -> float:
        """Surprise of a word, in bits, under add-one smoothed frequencies."""
        return math.log2((self.total + len(self.counts) + 1) / (self.counts[word] + 1))


def words_of(text: str) -> list[str]:
    """Lower-case runs of letters."""
    return _WORDS.findall(text.lower())


def beginning(text: str) -> str:
    """The first words of a text, all numbers alike."""
    return _DIGITS.sub("0", " ".join(text[:200].split(maxsplit=TEMPLATE_WORDS)[:TEMPLATE_WORDS]))


class Topics:
    """A space in which texts of like words are near: TF-IDF of hashed words, its strongest directions (Deerwester 1990)."""

    def __init__(self, texts: Sequence[str], seed: int = 0) -> None:
        # Imported here: what only counts words needs no scikit-learn.
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

        self._counts = HashingVectorizer(
            n_features=HASHED_WORDS, alternate_sign=False, norm=None, token_pattern=r"[^\W\d_]{2,}"
        )
        self._weights = TfidfTransformer(sublinear_tf=True)
        found = self._weights.fit_transform(self._counts.transform(texts))
        dimensions = max(2, min(TOPIC_DIMENSIONS, len(texts) - 1))
        model = TruncatedSVD(dimensions, random_state=seed, n_iter=2)
        with np.errstate(divide="ignore", invalid="ignore"):  # texts that are all the same
            self._directions: Any = model.fit(found)

    def place(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Where texts lie: `[texts, dimensions]`."""
        found = self._weights.transform(self._counts.transform(texts))
        return np.asarray(self._directions.transform(found), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Reference:
    """What reference texts make familiar."""

    vocabulary: Vocabulary
    topics: Topics

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Reference":
        """Learn from texts; at least two."""
        return cls(Vocabulary.of(texts), Topics(texts))


def templates_of(texts: Sequence[str]) -> list[str]:
    """The template that each text begins with, or `none`."""
    begun = [beginning(text) for text in texts]
    wanted = max(MIN_TEMPLATE_TEXTS, TEMPLATE_SHARE * len(texts))
    common = {name for name, count in Counter(begun).items() if count >= wanted}
    return [name if name in common else "none" for name in begun]


def describe(text: str, vocabulary: Vocabulary) -> dict[str, float | str]:
    """One row of columns. Shares are 0-1; `language` is an ISO code or `other`."""
    words = words_of(text)
    letters = sum(map(str.isalpha, text))
    count = max(1, len(words))
    return {
        "characters": float(len(text)),
        "words": float(len(words)),
        "sentences": float(len(_SENTENCE_ENDS.findall(text))),
        "upper_share": sum(map(str.isupper, text)) / max(1, letters),
        "non_letter_share": 1 - letters / max(1, len(text)),
        "unknown_word_share": sum(vocabulary.counts[w] == 0 for w in words) / count,
        "bits_per_word": sum(map(vocabulary.bits, words)) / count,
        "language": language_of(text) or "other",
    }
