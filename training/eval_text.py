"""How near free text is to its reference: ROUGE-1, -2, -L and -Lsum with stemming, an example at a time.

By the library rouge-score (Lin 2004), with one change: its own words are runs of a-z and 0-9, which leaves nothing of most
languages; ours are those of any script. On English text the figures are the library's. The router's own comparator is the same ROUGE-L
without stemming: it decides whether a row counts as right, these figures say how near it came.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from training.metrics import Mean, mean_of

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
"""`rougeLsum` reads every line of a text as a sentence, as the library does."""
_WORDS = re.compile(r"[^\W_]+")
_LONGEST_UNSTEMMED = 3
"""Words up to here are not stemmed, as in the library."""


@dataclass(frozen=True, slots=True)
class TextFigures:
    """Free text against references: F1 of each kind of ROUGE, and whether answers are as long as they should be."""

    rouge: dict[str, Mean]
    words: Mean
    """Words of an answer."""
    reference_words: Mean


class _Words:
    """The tokenizer that the library calls: lower case, stemmed by Porter's rules."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        words = _WORDS.findall(text.lower())
        return [self._stem(w) if len(w) > _LONGEST_UNSTEMMED else w for w in words]


@cache
def _scorer() -> Any:
    # Imported here: nltk behind it takes a second, and only text answers need it.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(KINDS), tokenizer=_Words())


def rouge(answer: str, reference: str) -> dict[str, float]:
    """F1 of each kind, 0-1. Two empty texts are equal."""
    if not _WORDS.search(answer.lower()) and not _WORDS.search(reference.lower()):
        return dict.fromkeys(KINDS, float(answer.strip() == reference.strip()))
    found = _scorer().score(reference, answer)
    return {kind: float(found[kind].fmeasure) for kind in KINDS}


def word_count(text: str) -> int:
    """Words as a reader counts them."""
    return len(text.split())


def text_figures(
    answers: Sequence[str], references: Sequence[str], scores: Sequence[dict[str, float]]
) -> TextFigures:
    """Means over the rows with bootstrap intervals.

    Args:
        scores: `rouge` of each row.
    """
    return TextFigures(
        rouge={kind: mean_of([row[kind] for row in scores]) for kind in KINDS},
        words=mean_of([word_count(a) for a in answers]),
        reference_words=mean_of([word_count(r) for r in references]),
    )
