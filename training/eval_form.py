"""Whether answers keep their form, and how much of a JSON answer's content is found, field by field. Pure.

Extraction counts values: precision is the share of the values answered that are right, recall the share of the wanted ones that are
found. A null or an absent field is no value. Values are compared normalised; items of a list are paired so that the
pairs are as alike as they can be, whatever their order.
"""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from router.answer_spec import AnswerSpec
from router.compare import json_value, parse, unfenced
from training.metrics import Rate, rate

LONGEST_COMPARED = 500
"""Characters of a value that likeness is measured on: its time grows with their square."""
_NUMBER = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?|[-+]?\d+(\.\d+)?([eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class Extraction:
    """One field of JSON answers, counted in values."""

    precision: Rate
    recall: Rate
    f1: float
    fuzzy_f1: float
    """F1 in which a pair of values counts as much as it is alike, 0-1."""


@dataclass(frozen=True, slots=True)
class FormFigures:
    """Whether answers have the form that was asked for."""

    parsed: Rate
    """A JSON value, or one of the labels."""
    valid: Rate | None
    """Valid under the route's JSON Schema; None without one."""
    extraction: dict[str, Extraction]
    """Field to what is found of it; empty unless the answers are JSON objects."""


class Count(NamedTuple):
    """Values answered, values wanted, pairs that are equal, likeness of all pairs summed."""

    answered: int
    wanted: int
    equal: int
    alike: float


def form_figures(
    spec: AnswerSpec, answers: Sequence[str], references: Sequence[str]
) -> FormFigures | None:
    """Figures of the form of `answers`; None for free text, which has none."""
    if spec.kind == "label":
        parsed = sum(parse(spec, answer) is not None for answer in answers)
        return FormFigures(rate(parsed, len(answers)), None, {})
    if spec.kind != "json":
        return None
    found, wanted = [_value(a) for a in answers], [_value(r) for r in references]
    valid = None
    if spec.validator is not None:
        fits = [v is not _BROKEN and spec.validator.is_valid(v) for v in found]
        valid = rate(sum(fits), len(fits))
    return FormFigures(
        rate(sum(v is not _BROKEN for v in found), len(found)),
        valid,
        {name: _extraction(name, found, wanted) for name in _names(spec, wanted)},
    )


_BROKEN = object()
"""What no JSON text means."""


def _value(text: str) -> Any:
    try:
        return json_value(unfenced(text), allows_constants=False)
    except (ValueError, RecursionError):
        return _BROKEN


def _names(spec: AnswerSpec, wanted: Sequence[Any]) -> list[str]:
    """Fields in the schema's order, then others that references have."""
    names = dict.fromkeys(((spec.schema_ or {}).get("properties") or {}).keys())
    for value in wanted:
        if isinstance(value, dict):
            names |= dict.fromkeys(value)
    return list(names)


def _extraction(name: str, found: Sequence[Any], wanted: Sequence[Any]) -> Extraction:
    counts = [
        count(
            one.get(name) if isinstance(one, dict) else None,
            other.get(name) if isinstance(other, dict) else None,
        )
        for one, other in zip(found, wanted, strict=True)
    ]
    answered, of = sum(c.answered for c in counts), sum(c.wanted for c in counts)
    equal, alike = sum(c.equal for c in counts), sum(c.alike for c in counts)
    return Extraction(rate(equal, answered), rate(equal, of), _f1(equal, answered, of), _f1(alike, answered, of))  # fmt: skip


def _f1(hits: float, answered: int, wanted: int) -> float:
    """2 hits / (answered + wanted); 1 where nothing was wanted and nothing answered."""
    return 2 * hits / (answered + wanted) if answered + wanted else 1.0


def count(answered: Any, wanted: Any) -> Count:
    """Two JSON values, or None for none, compared value by value."""
    equal, alike = _matched(answered, wanted)
    return Count(_size(answered), _size(wanted), equal, alike)


def _size(value: Any) -> int:
    """Values in a JSON value."""
    if value is None:
        return 0
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, list):
        return sum(map(_size, value))
    return 1


def _matched(one: Any, other: Any) -> tuple[int, float]:
    """Pairs of values that are equal, and likeness of all pairs."""
    if one is None or other is None:
        return 0, 0.0
    if isinstance(one, list) or isinstance(other, list):
        return _aligned(
            one if isinstance(one, list) else [one], other if isinstance(other, list) else [other]
        )
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [_matched(one[key], other[key]) for key in one.keys() & other.keys()]
        return sum(p[0] for p in pairs), sum(p[1] for p in pairs)
    if isinstance(one, dict) or isinstance(other, dict):
        return 0, 0.0
    a, b = normalised(one), normalised(other)
    return int(a == b), 1.0 if a == b else _likeness(a, b)


def _aligned(one: Sequence[Any], other: Sequence[Any]) -> tuple[int, float]:
    """Lists, their items paired one to one for the greatest likeness (the assignment problem)."""
    if not one or not other:
        return 0, 0.0
    table = [[_matched(a, b) for b in other] for a in one]
    likeness = np.array([[alike + 1e-6 * equal for equal, alike in row] for row in table])
    rows, columns = linear_sum_assignment(likeness, maximize=True)
    chosen = [table[i][j] for i, j in zip(rows, columns, strict=True)]
    return sum(c[0] for c in chosen), sum(c[1] for c in chosen)


def normalised(value: Any) -> str:
    """One spelling of a value: numbers by their value, text without case, outer punctuation and double spaces."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(float(value)) if abs(value) < 2**53 else str(value)
    text = " ".join(unicodedata.normalize("NFKC", str(value)).casefold().split())
    text = text.strip(" .,;:!?\"'`") or text  # what is nothing but punctuation is its own value
    if _NUMBER.fullmatch(text) and not _is_code(text):
        return repr(float(text.replace(",", "")))
    return text


def _is_code(text: str) -> bool:
    """Digits that name something: a leading zero or more of them than a float holds."""
    digits = text.lstrip("+-")
    return (digits.startswith("0") and len(digits) > 1 and digits[1].isdigit()) or len(digits) > 15


def _likeness(one: str, other: str) -> float:
    a, b = one[:LONGEST_COMPARED], other[:LONGEST_COMPARED]
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
