"""How often student and teacher differ, with intervals: per adapter version, per field, per slice. Pure.

Form and correctness are apart: an answer of the wrong form (unparseable, an error) is counted as a form failure and not
as a disagreement. Beside the rate stands what the teacher does to itself when it is asked twice.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from scipy import stats

from monitoring.intervals import holm, wilson
from monitoring.windows import class_of, input_of, pair_of
from router.answer_spec import AnswerSpec
from router.compare import compare
from router.difficulty import language_of
from router.records import Record

MIN_SLICE_ROWS = 8
"""Smaller slices are not reported: their intervals say nothing."""
MAX_CLASSES, OTHER_CLASSES = 1_000, "other classes"
"""Classes that are told apart; what comes after them is one class, or free text would fill the memory."""


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


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One adapter version against the teacher."""

    adapter: str | None
    pairs: int
    rate: Share
    """Over pairs that can be compared."""
    form_failures: Share
    """Student answers of the wrong form, over all pairs."""
    fields: dict[str, Share]
    noise_floor: Share | None
    """The teacher against itself; None when it was never asked twice."""
    kappa: float | None
    """Cohen's kappa over classes; None where the answer has none."""
    confusion: dict[str, dict[str, int]]
    """Teacher's class → student's class → pairs."""
    slices: tuple[Slice, ...]


class _Kind(NamedTuple):
    """All that a pair is counted by. Classes, language and segment are None where there is none."""

    adapter: str | None
    agree: bool | None
    form_ok: bool
    fields: tuple[tuple[str, bool], ...]
    teacher_class: str | None
    student_class: str | None
    length: str
    language: str | None
    segment: str | None


class Tally:
    """Pairs as they pass, counted by kind: memory grows with the kinds of pairs and not with the traffic."""

    def __init__(self, spec: AnswerSpec) -> None:
        self._spec = spec
        self._pairs: Counter[_Kind] = Counter()
        self._classes: set[str] = set()
        self._noise = [0, 0]

    def add(self, record: Record) -> None:
        """Take a record: a pair, or the teacher's answers to itself, or neither."""
        self._add_noise(record)
        pair = pair_of(record)
        comparison = record.comparison
        if pair is None or comparison is None:
            return
        student, teacher = pair
        is_comparable = comparison.agree is not None
        text = input_of(record) if is_comparable else ""
        kind = _Kind(
            adapter=student.adapter,
            agree=comparison.agree,
            form_ok=comparison.student_form_ok,
            fields=tuple(comparison.fields.items()) if is_comparable else (),
            teacher_class=self._class(teacher.text) if is_comparable else None,
            student_class=self._class(student.text) if is_comparable else None,
            length=_length(text),
            language=language_of(text),
            segment=record.segment,
        )
        self._pairs[kind] += 1

    def measure(self) -> list[Disagreement]:
        """One entry for each adapter version, the one with most pairs first."""
        by_adapter: dict[str | None, Counter[_Kind]] = defaultdict(Counter)
        for kind, count in self._pairs.items():
            by_adapter[kind.adapter][kind] = count
        floor = Share.of(*self._noise) if self._noise[1] else None
        found = [_one(adapter, group, floor) for adapter, group in by_adapter.items()]
        return sorted(found, key=lambda d: -d.pairs)

    def _add_noise(self, record: Record) -> None:
        again = next((a for a in record.answers if a.purpose == "noise" and a.ok), None)
        first = record.answer_of("teacher") if again is not None else None
        if again is not None and first is not None:
            agree = compare(self._spec, again, first).agree
            if agree is not None:
                self._noise[0] += not agree
                self._noise[1] += 1

    def _class(self, text: str | None) -> str | None:
        found = class_of(self._spec, text)
        if found is None or found in self._classes:
            return found
        if len(self._classes) >= MAX_CLASSES:
            return OTHER_CLASSES
        self._classes.add(found)
        return found


def measure(records: Iterable[Record], spec: AnswerSpec) -> list[Disagreement]:
    """Disagreement of each adapter version in `records`; see `Tally`."""
    tally = Tally(spec)
    for record in records:
        tally.add(record)
    return tally.measure()


def _one(adapter: str | None, kinds: Counter[_Kind], floor: Share | None) -> Disagreement:
    comparable = Counter({kind: n for kind, n in kinds.items() if kind.agree is not None})
    wrong: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    confusion: dict[str, Counter[str]] = defaultdict(Counter)
    for kind, n in comparable.items():
        for name, same in kind.fields:
            asked[name] += n
            wrong[name] += 0 if same else n
        if kind.teacher_class is not None and kind.student_class is not None:
            confusion[kind.teacher_class][kind.student_class] += n
    bad_form = sum(n for kind, n in kinds.items() if not kind.form_ok)
    return Disagreement(
        adapter=adapter,
        pairs=kinds.total(),
        rate=Share.of(_bad(comparable), comparable.total()),
        form_failures=Share.of(bad_form, kinds.total()),
        fields={name: Share.of(wrong[name], rows) for name, rows in asked.items()},
        noise_floor=floor,
        kappa=kappa(confusion),
        confusion={teacher: dict(row) for teacher, row in confusion.items()},
        slices=_slices(comparable),
    )


def _bad(kinds: Counter[_Kind]) -> int:
    return sum(n for kind, n in kinds.items() if kind.agree is False)


def kappa(confusion: dict[str, Counter[str]]) -> float | None:
    """Cohen's kappa: agreement beyond what the two class mixes give by chance (Cohen 1960)."""
    total = sum(sum(row.values()) for row in confusion.values())
    if not total:
        return None
    observed = sum(row[name] for name, row in confusion.items()) / total
    student = sum(confusion.values(), Counter[str]())
    chance = sum(sum(row.values()) * student[name] for name, row in confusion.items()) / total**2
    return 1.0 if chance == 1 else (observed - chance) / (1 - chance)


def _length(text: str) -> str:
    words = len(text.split())
    return "1-14 words" if words < 15 else "15-50 words" if words <= 50 else "over 50 words"


_SLICE_KEYS: dict[str, Callable[[_Kind], str | None]] = {
    "length": lambda kind: kind.length,
    "language": lambda kind: kind.language,
    "teacher's class": lambda kind: kind.teacher_class,
    "segment": lambda kind: kind.segment,
}


def _slices(kinds: Counter[_Kind]) -> tuple[Slice, ...]:
    """Parts of the traffic, the worst first. Each is tested against the rest by Fisher's exact test, one-sided."""
    wrong, rows = _bad(kinds), kinds.total()
    found: list[tuple[str, str, int, int]] = []
    for name, key in _SLICE_KEYS.items():
        groups: dict[str, Counter[_Kind]] = defaultdict(Counter)
        for kind, n in kinds.items():
            value = key(kind)
            if value is not None:
                groups[value][kind] = n
        found += [
            (name, value, _bad(group), group.total())
            for value, group in groups.items()
            if MIN_SLICE_ROWS <= group.total() < rows
        ]
    p_values = []
    for _, _, bad, size in found:
        table = [[bad, size - bad], [wrong - bad, rows - size - (wrong - bad)]]
        p_values.append(float(stats.fisher_exact(table, alternative="greater").pvalue))
    result = [
        Slice(name, value, Share.of(bad, size), p)
        for (name, value, bad, size), p in zip(found, holm(p_values), strict=True)
    ]
    return tuple(sorted(result, key=lambda s: (s.p_value, -s.disagreement.share)))
