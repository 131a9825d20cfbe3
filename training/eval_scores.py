"""What an answerer's confidence is worth: how well it tells right answers from wrong ones, and the ROC of two classes. Pure.

With two classes the score for the second is the confidence of an answer that says so, and one less it of an answer that does not; an
answer of neither class says nothing (0.5). With more classes a whole answer's confidence is not a score of each class, so there is no ROC.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from router.answer_spec import AnswerSpec
from router.compare import parse
from training.predict import Prediction
from training.study_figures import auc

DRAWS = 300


@dataclass(frozen=True, slots=True)
class Auc:
    """Area under a ROC curve with its 95 % bootstrap interval over rows."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Scores:
    """One answerer. A figure is None where the rows cannot give it."""

    of_confidence: Auc | None
    """How often a right answer is surer than a wrong one; None when all are right, all wrong, or all equally sure."""
    of_class: Auc | None
    """How often a row of the class has the higher score; None unless there are two classes and scores differ."""
    class_name: str | None = None
    """The class: the rarer one of the references."""
    curve: tuple[tuple[float, float], ...] = ()
    """Its ROC: share of other rows taken for it, share of its rows found; from (0, 0) to (1, 1)."""


def scores(
    spec: AnswerSpec,
    answers: Sequence[Prediction],
    references: Sequence[str],
    right: Sequence[bool],
) -> Scores:
    """What confidence gives on these rows."""
    sure = [p.confidence for p in answers]
    of_confidence = _auc(sure, right)
    wanted = [_class(spec, r) for r in references]
    counts = Counter(wanted)
    if len(counts) != 2 or None in counts or len(set(sure)) < 2:
        return Scores(of_confidence, None)
    chosen = min(counts, key=lambda name: (counts[name], str(name)))
    points = [_score(_class(spec, p.text), p.confidence, chosen, set(counts)) for p in answers]
    is_it = [name == chosen for name in wanted]
    return Scores(of_confidence, _auc(points, is_it), chosen, roc(points, is_it))


def _class(spec: AnswerSpec, text: str) -> str | None:
    """A label, or the one compared field of a JSON answer; None when there is none."""
    value = parse(spec, text) if spec.kind in ("label", "json") else None
    if spec.kind == "label":
        return value
    fields = spec.compare.fields
    if not isinstance(value, dict) or len(fields) != 1:
        return None
    found = value[fields[0]]
    return found if isinstance(found, str) else json.dumps(found)


def _score(
    said: str | None, confidence: float, chosen: str | None, known: set[str | None]
) -> float:
    if said not in known:
        return 0.5
    return confidence if said == chosen else 1 - confidence


def _auc(values: Sequence[float], marks: Sequence[bool]) -> Auc | None:
    row, yes = np.asarray(values, dtype=float), np.asarray(marks, dtype=bool)
    if not len(row) or yes.all() or not yes.any() or row.min() == row.max():
        return None
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(row), size=(DRAWS, len(row)))
    found = [auc(row[d], yes[d]) for d in draws if yes[d].any() and not yes[d].all()]
    low, high = np.quantile(found or [0.0, 1.0], [0.025, 0.975])
    return Auc(auc(row, yes), float(low), float(high))


def roc(values: Sequence[float], marks: Sequence[bool]) -> tuple[tuple[float, float], ...]:
    """False against true positives at every distinct cut, the highest first."""
    row, yes = np.asarray(values, dtype=float), np.asarray(marks, dtype=bool)
    order = np.argsort(-row, kind="stable")
    ends = np.append(np.diff(row[order]) != 0, True)
    hits, misses = np.cumsum(yes[order])[ends], np.cumsum(~yes[order])[ends]
    points = [(0.0, 0.0)]
    points += [
        (float(m) / max(1, int((~yes).sum())), float(h) / max(1, int(yes.sum())))
        for m, h in zip(misses, hits, strict=True)
    ]
    return tuple(points)
