"""How often student and teacher differ, with intervals: per adapter version, per field, per slice. Pure.

Form and correctness are apart: an answer of the wrong form (unparseable, an error) is counted as a form failure and not
as a disagreement. Beside the rate stands what the teacher does to itself when it is asked twice.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from monitoring.slices import PairSample, Share, Slice, counted, ranked
from monitoring.windows import class_of, input_of, pair_of
from router.answer_spec import AnswerSpec
from router.compare import compare
from router.records import Record

MAX_CLASSES, OTHER_CLASSES = 1_000, "other classes"
"""Classes that are told apart; what comes after them is one class, or free text would fill the memory."""
REMEMBERED_ANSWERS, ANSWER_CHARACTERS = 5_000, 200
"""Short answers whose class is remembered: a label is read once and not a million times."""


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
    """All that a pair is counted by. Classes and segment are None where there is none."""

    adapter: str | None
    agree: bool | None
    form_ok: bool
    fields: tuple[tuple[str, bool], ...]
    teacher_class: str | None
    student_class: str | None
    segment: str | None


class Tally:
    """Pairs as they pass, counted by kind, a sample of them kept: memory does not grow with the traffic.

    Args:
        noise: whether the teacher's two answers of a record agree, where the spec's comparator cannot say so at once.
    """

    def __init__(
        self, spec: AnswerSpec, noise: Callable[[Record], bool | None] | None = None
    ) -> None:
        self._spec = spec
        self._noise_agrees = noise
        self._pairs: Counter[_Kind] = Counter()
        self._samples: dict[str | None, PairSample] = defaultdict(PairSample)
        self._classes: set[str] = set()
        self._remembered: dict[str, str | None] = {}
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
        kind = _Kind(
            adapter=student.adapter,
            agree=comparison.agree,
            form_ok=comparison.student_form_ok,
            fields=tuple(comparison.fields.items()) if is_comparable else (),
            teacher_class=self._class(teacher.text) if is_comparable else None,
            student_class=self._class(student.text) if is_comparable else None,
            segment=record.segment,
        )
        self._pairs[kind] += 1
        if comparison.agree is not None:
            is_bad = not comparison.agree
            self._samples[student.adapter].add(is_bad, lambda: input_of(record))

    def measure(self) -> list[Disagreement]:
        """One entry for each adapter version, the one with most pairs first."""
        by_adapter: dict[str | None, Counter[_Kind]] = defaultdict(Counter)
        for kind, count in self._pairs.items():
            by_adapter[kind.adapter][kind] = count
        floor = Share.of(*self._noise) if self._noise[1] else None
        found = [
            _one(adapter, group, floor, self._samples[adapter])
            for adapter, group in by_adapter.items()
        ]
        return sorted(found, key=lambda d: -d.pairs)

    def _add_noise(self, record: Record) -> None:
        for again in record.answers:
            if again.purpose == "noise" and again.ok:
                break
        else:
            return
        first = record.answer_of("teacher")
        if first is not None:
            if self._noise_agrees is None:
                agree = compare(self._spec, again, first).agree
            else:
                agree = self._noise_agrees(record)
            if agree is not None:
                self._noise[0] += not agree
                self._noise[1] += 1

    def _class(self, text: str | None) -> str | None:
        if text is not None and text in self._remembered:
            return self._remembered[text]
        found = self._told_apart(class_of(self._spec, text))
        is_short = text is not None and len(text) <= ANSWER_CHARACTERS
        if text is not None and is_short and len(self._remembered) < REMEMBERED_ANSWERS:
            self._remembered[text] = found
        return found

    def _told_apart(self, found: str | None) -> str | None:
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


def _one(
    adapter: str | None, kinds: Counter[_Kind], floor: Share | None, sample: PairSample
) -> Disagreement:
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
        slices=_slices(comparable, sample),
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


def _slices(kinds: Counter[_Kind], sample: PairSample) -> tuple[Slice, ...]:
    rows = [(kind, kind.agree is False, n) for kind, n in kinds.items()]
    return ranked(
        [
            *sample.slices(),
            *counted("teacher's class", [(k.teacher_class, bad, n) for k, bad, n in rows]),
            *counted("segment", [(k.segment, bad, n) for k, bad, n in rows]),
        ]
    )
