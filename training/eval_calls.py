"""What answers that call tools are worth: the right tool, the right arguments, valid ones, and no call where none is wanted. Pure.

Arguments are compared twice: exactly, as JSON values in any key order (1 is 1.0, true is not 1), and normalised as
extracted fields are (`eval_form`), which forgives case, outer punctuation and the spelling of numbers. A call that is none
(`<tool_call>` without JSON in it) is neither a call nor an abstention: it is counted apart.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from router.answer_spec import AnswerSpec
from router.compare import is_same, parse
from training.eval_form import count
from training.metrics import Rate, rate
from training.tools import Tools, call_problem, schemas_of

Call = tuple[str, Any]


@dataclass(frozen=True, slots=True)
class ArgumentFigures:
    """Arguments, counted one by one."""

    precision: Rate
    """Of those given, exactly right."""
    recall: Rate
    """Of those wanted, given exactly right."""
    f1: float
    normalised_f1: float
    """F1 of values compared normalised, lists and objects value by value."""


@dataclass(frozen=True, slots=True)
class CallFigures:
    """One answerer's calls against one reference."""

    names: Rate
    """Of rows that want calls: those that call the same tools, each as often."""
    arguments: Rate
    """Of rows that want calls: those whose every call is exactly the wanted one."""
    missed: Rate
    """Of rows that want calls: those without one."""
    abstained: Rate
    """Of rows that want none: those without one."""
    spurious: Rate
    """Of rows that want none: those with one."""
    unparseable: Rate
    """Of all rows: those that begin a call and do not end it, or without a name or arguments."""
    valid: Rate | None
    """Of calls made, where the request's tools are known: those of such a tool, valid under its JSON Schema."""
    unknown_tools: int
    """Calls of a tool that the request did not bring; they are not valid."""
    all_arguments: ArgumentFigures
    by_argument: dict[str, ArgumentFigures]
    """`tool.argument` to its figures, in the order in which references have them."""


def call_figures(
    spec: AnswerSpec, answers: Sequence[str], references: Sequence[str], tools: Sequence[Tools]
) -> CallFigures:
    """Figures of the calls in `answers`.

    Args:
        tools: those that each row's request brought; () where they are not known.
    """
    found = [parse(spec, answer) for answer in answers]
    wanted: list[list[Call]] = [parse(spec, reference) or [] for reference in references]
    pairs = list(zip(found, wanted, strict=True))
    with_call = [(f, w) for f, w in pairs if w]
    without = [f for f, w in pairs if not w]
    made = [
        (call, schemas_of(t)) for f, t in zip(found, tools, strict=True) if t for call in f or ()
    ]
    unknown = sum(name not in schemas for (name, _), schemas in made)
    fits = sum(call_problem(name, value, schemas) is None for (name, value), schemas in made)
    total, by_argument = _arguments(pairs)
    return CallFigures(
        names=rate(sum(_names(f) == _names(w) for f, w in with_call), len(with_call)),
        arguments=rate(sum(is_same(f, w) for f, w in with_call), len(with_call)),
        missed=rate(sum(f == [] for f, _ in with_call), len(with_call)),
        abstained=rate(sum(f == [] for f in without), len(without)),
        spurious=rate(sum(bool(f) for f in without), len(without)),
        unparseable=rate(sum(f is None for f in found), len(found)),
        valid=rate(fits, len(made)) if any(tools) else None,
        unknown_tools=unknown,
        all_arguments=total,
        by_argument=by_argument,
    )


def _names(calls: Sequence[Call] | None) -> list[str] | None:
    """Tools called; None for a call that is none, which equals nothing."""
    return None if calls is None else sorted(name for name, _ in calls)


class _Counts(NamedTuple):
    """Arguments given, wanted, exactly right; then values answered, wanted, equal."""

    given: int = 0
    wanted: int = 0
    right: int = 0
    values_answered: int = 0
    values_wanted: int = 0
    values_equal: int = 0

    def plus(self, other: "_Counts") -> "_Counts":
        return _Counts(*(a + b for a, b in zip(self, other, strict=True)))

    def figures(self) -> ArgumentFigures:
        return ArgumentFigures(
            rate(self.right, self.given),
            rate(self.right, self.wanted),
            _f1(self.right, self.given + self.wanted),
            _f1(self.values_equal, self.values_answered + self.values_wanted),
        )


def _f1(hits: int, both: int) -> float:
    """1 where nothing was wanted and nothing given."""
    return 2 * hits / both if both else 1.0


def _arguments(
    pairs: Sequence[tuple[list[Call] | None, list[Call]]],
) -> tuple[ArgumentFigures, dict[str, ArgumentFigures]]:
    counted: dict[str, _Counts] = {}
    for found, wanted in pairs:
        for one, other in _matched(found or [], wanted):
            name = other[0] if other is not None else one[0] if one is not None else ""
            given = _as_dict(one)
            right = _as_dict(other)
            for key in [*right, *(k for k in given if k not in right)]:
                place = f"{name}.{key}"
                counted[place] = counted.get(place, _Counts()).plus(_counts(given, right, key))
    total = _Counts()
    for counts in counted.values():
        total = total.plus(counts)
    return total.figures(), {name: counts.figures() for name, counts in counted.items()}


def _as_dict(call: Call | None) -> dict[str, Any]:
    return call[1] if call is not None and isinstance(call[1], dict) else {}


def _counts(given: Mapping[str, Any], right: Mapping[str, Any], key: str) -> _Counts:
    is_right = key in given and key in right and is_same(given[key], right[key])
    values = count(given.get(key), right.get(key))
    return _Counts(
        key in given, key in right, is_right, values.answered, values.wanted, values.equal
    )


def _matched(
    found: Sequence[Call], wanted: Sequence[Call]
) -> list[tuple[Call | None, Call | None]]:
    """Calls of one tool paired so that most arguments agree, whatever their order; the others stand alone."""
    ours, theirs = defaultdict(list), defaultdict(list)
    for call in found:
        ours[call[0]].append(call)
    for call in wanted:
        theirs[call[0]].append(call)
    pairs: list[tuple[Call | None, Call | None]] = []
    for name in dict.fromkeys([*theirs, *ours]):
        one, other = ours[name], theirs[name]
        rows, columns = np.array([], dtype=int), np.array([], dtype=int)
        if one and other:
            table = [[_agreeing(a, b) for b in other] for a in one]
            rows, columns = linear_sum_assignment(np.array(table), maximize=True)
        pairs += [(one[i], other[j]) for i, j in zip(rows, columns, strict=True)]
        pairs += [(None, call) for j, call in enumerate(other) if j not in columns]
        pairs += [(call, None) for i, call in enumerate(one) if i not in rows]
    return pairs


def _agreeing(one: Call, other: Call) -> int:
    given, right = _as_dict(one), _as_dict(other)
    return sum(key in right and is_same(given[key], right[key]) for key in given)
