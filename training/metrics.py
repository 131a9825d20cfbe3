"""How good answers are against a reference: per field and whole, with intervals, unparseable counted apart. Pure."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monitoring.intervals import wilson
from router.answer_spec import AnswerSpec
from router.compare import compare, parse
from router.records import Answer
from training.dataset import NO_CALL_CLASS


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of rows with its Wilson 95 % interval."""

    right: int
    rows: int
    share: float
    low: float
    high: float


def rate(right: int, rows: int) -> Rate:
    """The share, 0 of 0 as 0 with the whole range as its interval."""
    low, high = wilson(right, rows)
    return Rate(right, rows, right / rows if rows else 0.0, low, high)


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over rows with its 95 % interval (percentile bootstrap)."""

    value: float
    rows: int
    low: float
    high: float


def mean_of(values: Sequence[float], *, seed: int = 0, draws: int = 1000) -> Mean:
    """The mean of `values`; of none it is 0."""
    row = np.asarray(values, dtype=float)
    if not len(row):
        return Mean(0.0, 0, 0.0, 0.0)
    generator = np.random.default_rng(seed)
    means = row[generator.integers(0, len(row), size=(draws, len(row)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Mean(float(row.mean()), len(row), float(low), float(high))


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """One class: precision, recall, F1 and how many rows have it."""

    precision: float
    recall: float
    f1: float
    rows: int


@dataclass(frozen=True, slots=True)
class FieldFigures:
    """One field of the answer (or the whole label): accuracy, per-class figures, confusion."""

    accuracy: Rate
    balanced_accuracy: float
    macro_f1: float
    classes: dict[str, ClassFigures]
    confusion: dict[str, dict[str, int]]
    """Reference class → answered class → rows."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One answerer against one reference. `right` has one entry a row, in order."""

    accuracy: Rate
    unparseable: int
    fields: dict[str, FieldFigures]
    right: tuple[bool, ...]


def is_right(spec: AnswerSpec, answer: str, reference: str) -> bool:
    """Whether an answer agrees with the reference under the route's comparator."""
    one = Answer(role="student", backend="", model="", status=200, text=answer)
    other = Answer(role="teacher", backend="", model="", status=200, text=reference)
    return compare(spec, one, other).agree is True


def figures(spec: AnswerSpec, answers: Sequence[str], references: Sequence[str]) -> Figures:
    """Figures of `answers` against `references`, row by row; an unparseable answer is wrong and counted apart."""
    right = tuple(is_right(spec, a, r) for a, r in zip(answers, references, strict=True))
    parsed = [parse(spec, a) for a in answers]
    wanted = [parse(spec, r) for r in references]
    fields: dict[str, FieldFigures] = {}
    for name in _class_fields(spec):
        pairs = [(_class(w, name), _class(p, name)) for w, p in zip(wanted, parsed, strict=True)]
        fields[name or spec.kind] = field_figures([w for w, _ in pairs], [p for _, p in pairs])
    return Figures(
        accuracy=rate(sum(right), len(right)),
        unparseable=sum(p is None for p in parsed),
        fields=fields,
        right=right,
    )


def field_figures(references: Sequence[str], answers: Sequence[str]) -> FieldFigures:
    """Per-class figures of one field; classes are those of the references, other answers are wrong."""
    confusion: dict[str, Counter[str]] = {}
    for reference, answer in zip(references, answers, strict=True):
        confusion.setdefault(reference, Counter())[answer] += 1
    answered = Counter(answers)
    classes: dict[str, ClassFigures] = {}
    for name, row in sorted(confusion.items()):
        hit, of = row[name], row.total()
        precision = hit / answered[name] if answered[name] else 0.0
        recall = hit / of
        f1 = 2 * precision * recall / (precision + recall) if hit else 0.0
        classes[name] = ClassFigures(precision, recall, f1, of)
    hits = sum(row[name] for name, row in confusion.items())
    count = max(1, len(classes))
    return FieldFigures(
        accuracy=rate(hits, len(references)),
        balanced_accuracy=sum(c.recall for c in classes.values()) / count,
        macro_f1=sum(c.f1 for c in classes.values()) / count,
        classes=classes,
        confusion={name: dict(row) for name, row in confusion.items()},
    )


def _class_fields(spec: AnswerSpec) -> tuple[str | None, ...]:
    if spec.kind in ("label", "tool_call"):
        return (None,)
    if spec.kind == "json":
        return tuple(spec.compare.fields)
    return ()


def _class(value: Any, name: str | None) -> str:
    if value is None:
        return "(unparseable)"
    if isinstance(value, list) and name is None:  # tool calls
        return "+".join(sorted({call for call, _ in value})) or NO_CALL_CLASS
    if name is None:
        return str(value)
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, str) else json.dumps(found)
