"""How often student and teacher differ, with intervals: per adapter version, per field, per slice. Pure.

Form and correctness are apart: an answer of the wrong form (unparseable, an error) is counted as a form failure and not
as a disagreement. Beside the rate stands what the teacher does to itself when it is asked twice.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy import stats

from monitoring.intervals import holm, wilson
from monitoring.windows import Pair, class_of, input_of
from router.answer_spec import AnswerSpec
from router.compare import compare
from router.difficulty import language_of
from router.records import Record

MIN_SLICE_ROWS = 8
"""Smaller slices are not reported: their intervals say nothing."""


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


def measure(
    pairs: Sequence[Pair], spec: AnswerSpec, records: Sequence[Record]
) -> list[Disagreement]:
    """One entry for each adapter version, the one with most pairs first.

    Args:
        records: the same window, for the teacher's answers to itself.
    """
    by_adapter: dict[str | None, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_adapter[pair.adapter].append(pair)
    floor = noise_floor(records, spec)
    found = [_one(adapter, group, spec, floor) for adapter, group in by_adapter.items()]
    return sorted(found, key=lambda d: -d.pairs)


def _one(
    adapter: str | None, pairs: Sequence[Pair], spec: AnswerSpec, floor: Share | None
) -> Disagreement:
    comparable = [p for p in pairs if p.agree is not None]
    fields: dict[str, list[bool]] = defaultdict(list)
    for pair in comparable:
        comparison = pair.record.comparison
        for name, same in (comparison.fields if comparison else {}).items():
            fields[name].append(not same)
    confusion: dict[str, Counter[str]] = defaultdict(Counter)
    for pair in comparable:
        teacher = class_of(spec, pair.teacher_text)
        student = class_of(spec, pair.student_text)
        if teacher is not None and student is not None:
            confusion[teacher][student] += 1
    return Disagreement(
        adapter=adapter,
        pairs=len(pairs),
        rate=Share.of(sum(p.agree is False for p in comparable), len(comparable)),
        form_failures=Share.of(sum(not p.student_form_ok for p in pairs), len(pairs)),
        fields={name: Share.of(sum(wrong), len(wrong)) for name, wrong in fields.items()},
        noise_floor=floor,
        kappa=kappa(confusion),
        confusion={teacher: dict(row) for teacher, row in confusion.items()},
        slices=slices(comparable, spec),
    )


def noise_floor(records: Sequence[Record], spec: AnswerSpec) -> Share | None:
    """How often the teacher disagrees with itself, where it was asked twice."""
    results = []
    for record in records:
        again = next((a for a in record.answers if a.purpose == "noise" and a.ok), None)
        first = record.answer_of("teacher")
        if again is not None and first is not None:
            agree = compare(spec, again, first).agree
            if agree is not None:
                results.append(not agree)
    return Share.of(sum(results), len(results)) if results else None


def kappa(confusion: dict[str, Counter[str]]) -> float | None:
    """Cohen's kappa: agreement beyond what the two class mixes give by chance (Cohen 1960)."""
    total = sum(sum(row.values()) for row in confusion.values())
    if not total:
        return None
    observed = sum(row[name] for name, row in confusion.items()) / total
    student = sum(confusion.values(), Counter[str]())
    chance = sum(sum(row.values()) * student[name] for name, row in confusion.items()) / total**2
    return 1.0 if chance == 1 else (observed - chance) / (1 - chance)


def _length(pair: Pair) -> str:
    words = len(input_of(pair.record).split())
    return "1-14 words" if words < 15 else "15-50 words" if words <= 50 else "over 50 words"


def _slice_keys(spec: AnswerSpec) -> dict[str, Callable[[Pair], str | None]]:
    return {
        "length": _length,
        "language": lambda pair: language_of(input_of(pair.record)),
        "teacher's class": lambda pair: class_of(spec, pair.teacher_text),
        "segment": lambda pair: pair.record.segment,
    }


def slices(pairs: Sequence[Pair], spec: AnswerSpec) -> tuple[Slice, ...]:
    """Parts of the traffic, the worst first. Each is tested against the rest by Fisher's exact test, one-sided."""
    found: list[tuple[str, str, int, int]] = []
    for name, key in _slice_keys(spec).items():
        groups: dict[str, list[Pair]] = defaultdict(list)
        for pair in pairs:
            value = key(pair)
            if value is not None:
                groups[value].append(pair)
        found += [
            (name, value, sum(p.agree is False for p in group), len(group))
            for value, group in groups.items()
            if MIN_SLICE_ROWS <= len(group) < len(pairs)
        ]
    wrong, rows = sum(p.agree is False for p in pairs), len(pairs)
    p_values = []
    for _, _, bad, size in found:
        table = [[bad, size - bad], [wrong - bad, rows - size - (wrong - bad)]]
        p_values.append(float(stats.fisher_exact(table, alternative="greater").pvalue))
    result = [
        Slice(name, value, Share.of(bad, size), p)
        for (name, value, bad, size), p in zip(found, holm(p_values), strict=True)
    ]
    return tuple(sorted(result, key=lambda s: (s.p_value, -s.disagreement.share)))
