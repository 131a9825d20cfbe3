"""What can be measured of an input text without a model: its size, its form, and how familiar its words are. Pure."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from router.difficulty import language_of

_WORDS = re.compile(r"[^\W\d_]+", re.UNICODE)
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
    return [w.lower() for w in _WORDS.findall(text)]


def describe(text: str, vocabulary: Vocabulary) -> dict[str, float | str]:
    """One row of columns. Shares are 0-1; `language` is an ISO code or `other`."""
    words = words_of(text)
    letters = [c for c in text if c.isalpha()]
    count = max(1, len(words))
    return {
        "characters": float(len(text)),
        "words": float(len(words)),
        "sentences": float(len(_SENTENCE_ENDS.findall(text))),
        "upper_share": sum(c.isupper() for c in letters) / max(1, len(letters)),
        "non_letter_share": 1 - len(letters) / max(1, len(text)),
        "unknown_word_share": sum(vocabulary.counts[w] == 0 for w in words) / count,
        "bits_per_word": sum(vocabulary.bits(w) for w in words) / count,
        "language": language_of(text) or "other",
    }
