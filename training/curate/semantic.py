"""Rows that say the same in other words: candidates by cosine of sentence vectors, never decided by cosine alone.

No small encoder tells a paraphrase from a near-identical text of other meaning ("has arrived" and "has not arrived" are
closer than most paraphrases). So a pair counts only when, beside the cosine, both rows have the same answer and the same
numbers, both negate or neither does, and no row with another answer is nearer to either. The rest is reported as
look-alikes.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from router.prompt import last_user_text
from training.curate.config import Semantic
from training.curate.ledger import HELD_OUT_TWIN, Entry, Outcome
from training.dataset import Example

STAGE = "semantic duplicates"
RULE = "semantic duplicate"
BLOCK = 1024
"""Rows whose cosines with all others are in memory at once."""
NUM_SAMPLES = 5
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NEGATION = re.compile(
    r"\b(?:no|not|never|none|nothing|nobody|neither|nor|without|cannot|can't|kein\w*|nicht|nie|ohne|pas|jamais|sans|"
    r"ningún|nunca|sin)\b|n['’]t\b",
    re.IGNORECASE,
)


class Vectors(Protocol):
    """What is needed of an encoder."""

    @property
    def id(self) -> str:
        """What names its weights."""
        ...

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, d], each of length 1."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rows at least as alike as asked; `why` says why they do not count as duplicates, "" when they do."""

    one: int
    other: int
    cosine: float
    why: str


def pairs(rows: Sequence[Example], vectors: np.ndarray, lowest: float) -> list[Pair]:
    """Pairs (one < other) with a cosine of at least `lowest`, judged."""
    texts = [last_user_text(e.messages) for e in rows]
    numbers = [Counter(_NUMBER.findall(text)) for text in texts]
    negations = [len(_NEGATION.findall(text)) for text in texts]
    found: list[tuple[int, int, float]] = []
    contrary = np.full(len(rows), -1.0)
    """Cosine with the nearest row of another answer."""
    answers = np.array([hash(e.completion) for e in rows])
    for start in range(0, len(rows), BLOCK):
        cosines = vectors[start : start + BLOCK] @ vectors.T
        for place, row in enumerate(cosines):
            i = start + place
            other_answer = answers != answers[i]
            if other_answer.any():
                contrary[i] = float(row[other_answer].max())
            found += [
                (i, j, float(row[j])) for j in np.flatnonzero(row >= lowest).tolist() if j > i
            ]
    judged = []
    for i, j, cosine in found:
        why = ""
        if rows[i].completion != rows[j].completion:
            why = "other answer"
        elif numbers[i] != numbers[j]:
            why = "other numbers"
        elif negations[i] % 2 != negations[j] % 2:
            why = "negation"
        elif max(contrary[i], contrary[j]) >= cosine:
            why = "nearer to a row with another answer"
        judged.append(Pair(i, j, cosine, why))
    return judged


def apply(
    config: Semantic, examples: Sequence[Example], held_out: Sequence[Example], encoder: Vectors
) -> Outcome:
    """Duplicates flagged or left out, best label first; a row like a held-out one leaves too. The report has the curve."""
    rows = [*held_out, *examples]
    fixed = len(held_out)
    vectors = encoder.vectors([last_user_text(e.messages) for e in rows])
    found = pairs(rows, vectors, config.min_cosine)
    near: dict[int, list[tuple[float, int]]] = {}
    for pair in found:
        if not pair.why:
            near.setdefault(pair.one, []).append((pair.cosine, pair.other))
            near.setdefault(pair.other, []).append((pair.cosine, pair.one))
    order = sorted(
        range(fixed, len(rows)), key=lambda i: (rows[i].gold is not None, rows[i].at, rows[i].id), reverse=True
    )  # fmt: skip
    staying, gone = set(range(fixed)), dict[int, tuple[float, int]]()
    for i in order:
        twins = [twin for twin in near.get(i, ()) if twin[1] in staying]
        if twins:
            gone[i] = max(twins)
        else:
            staying.add(i)
    dropped = gone if config.action == "drop" else {}
    outcome = Outcome([e for i, e in enumerate(examples, fixed) if i not in dropped])
    for i, (cosine, twin) in sorted(dropped.items()):
        rule = HELD_OUT_TWIN if twin < fixed else RULE
        detail = f"says what {rows[twin].id} says"
        outcome.entries.append(Entry("removed", STAGE, rule, rows[i], round(cosine, 4), detail))
    outcome.report = {
        "encoder": encoder.id, "min_cosine": config.min_cosine, "action": config.action, "duplicates": len(gone),
        "look_alikes": dict(Counter(pair.why for pair in found if pair.why)),
        "samples": [_shown(rows, pair) for pair in _lowest(found, True)],
        "look_alike_samples": [_shown(rows, pair) for pair in _lowest(found, False)],
        "found": [
            {"id": rows[i].id, "like": rows[twin].id, "cosine": round(cosine, 4)}
            for i, (cosine, twin) in sorted(gone.items())
        ],
    }  # fmt: skip
    return outcome


def _lowest(found: Sequence[Pair], is_duplicate: bool) -> list[Pair]:
    """The duplicates that a higher threshold would lose first, or the look-alikes that are most alike."""
    chosen = [pair for pair in found if (pair.why == "") == is_duplicate]
    return sorted(chosen, key=lambda p: p.cosine if is_duplicate else -p.cosine)[:NUM_SAMPLES]


def _shown(rows: Sequence[Example], pair: Pair) -> dict[str, Any]:
    return {
        "cosine": round(pair.cosine, 3), "why": pair.why,
        "texts": [last_user_text(rows[i].messages)[:160] for i in (pair.one, pair.other)],
        "answers": [rows[i].completion[:80] for i in (pair.one, pair.other)],
    }  # fmt: skip
