"""Where a student is wrong: rows side by side, slices with more errors than chance, flips, the training rows behind a mistake.

Pure: answers and references in, tables out. Where answers come from is the command's affair.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from router.answer_spec import AnswerSpec
from training import slices as parts
from training.baselines import text_of
from training.dataset import Example, class_of
from training.errors import ConfigError
from training.metrics import is_right
from training.predict import Prediction
from training.slices import Slice as Slice

Filter = Literal[
    "wrong", "teacher-right", "teacher-wrong", "disagreement", "unsure", "right", "all"
]
FILTERS: tuple[Filter, ...] = get_args(Filter)
UNSURE = 0.7
"""Confidence below which an answer counts as unsure."""
TEACHER_WRONG = "the teacher is wrong too"
SIMILAR = 0.25
"""Cosine of TF-IDF vectors below which no training row counts as similar."""


@dataclass(frozen=True, slots=True)
class Case:
    """One held-out row: what is right, what the teacher said, what the student said."""

    id: str
    text: str
    reference: str
    """Gold where the row has it, else the teacher's answer."""
    gold: str | None
    teacher: str | None
    student: str
    confidence: float
    student_right: bool
    teacher_right: bool | None
    """None when the row has no gold answer: the teacher cannot be judged by itself."""
    class_name: str


def cases(
    spec: AnswerSpec, examples: Sequence[Example], answers: Sequence[Prediction]
) -> list[Case]:
    """Rows with the student's answers, in order."""
    form = spec.model_dump(mode="json", by_alias=True)
    found = []
    for example, answer in zip(examples, answers, strict=True):
        reference = (
            example.gold if example.gold is not None else example.teacher or example.completion
        )
        judged = None
        if example.gold is not None and example.teacher is not None:
            judged = is_right(spec, example.teacher, example.gold)
        found.append(
            Case(
                id=example.id,
                text=text_of(example),
                reference=reference,
                gold=example.gold,
                teacher=example.teacher,
                student=answer.text,
                confidence=answer.confidence,
                student_right=is_right(spec, answer.text, reference),
                teacher_right=judged,
                class_name=class_of(example.completion, form) or "",
            )
        )
    return found


def choose(
    rows: Iterable[Case], which: str = "wrong", *, class_name: str | None = None, search: str | None = None
) -> list[Case]:  # fmt: skip
    """Rows of one kind, the student's surest answers first: a sure mistake teaches most.

    Raises:
        ConfigError: an unknown filter.
    """
    if which not in FILTERS:
        raise ConfigError(f"--filter {which!r}: allowed: {', '.join(FILTERS)}")
    kinds: dict[str, Callable[[Case], bool]] = {
        "wrong": lambda c: not c.student_right,
        "teacher-right": lambda c: not c.student_right and c.teacher_right is True,
        "teacher-wrong": lambda c: not c.student_right and c.teacher_right is False,
        "disagreement": lambda c: c.teacher is not None and c.teacher.strip() != c.student.strip(),
        "unsure": lambda c: c.confidence < UNSURE,
        "right": lambda c: c.student_right,
        "all": lambda c: True,
    }
    wanted = kinds[which]
    found = [
        c
        for c in rows
        if wanted(c)
        and (class_name is None or c.class_name == class_name)
        and (search is None or search.lower() in c.text.lower())
    ]
    return sorted(found, key=lambda c: (c.student_right, -c.confidence))


def members_of(rows: Sequence[Case], words: int = 40) -> dict[str, np.ndarray]:
    """Which rows are in which slice: by class, length, the teacher's verdict, confidence and frequent words."""
    texts = [c.text for c in rows]
    found = parts.by_value("class", [c.class_name for c in rows]) | parts.by_length(texts)
    if any(c.teacher_right is not None for c in rows):
        found[TEACHER_WRONG] = np.array([c.teacher_right is False for c in rows])
    found[f"confidence below {UNSURE}"] = np.array([c.confidence < UNSURE for c in rows])
    return found | parts.by_words(texts, words)


def slices(rows: Sequence[Case], words: int = 40) -> list[Slice]:
    """Slices with the student's errors in them, the most suspicious first."""
    return parts.tested(members_of(rows, words), np.array([not c.student_right for c in rows]))


@dataclass(frozen=True, slots=True)
class Flips:
    """Rows on which two students differ in being right."""

    fixed: tuple[str, ...]
    """Wrong before, right now."""
    broken: tuple[str, ...]
    """Right before, wrong now."""
    p_value: float
    """McNemar's exact test: whether as many are fixed as broken."""


def flips(before: Sequence[Case], now: Sequence[Case]) -> Flips:
    """What changed between two evaluations of the same rows; rows that only one has are left out."""
    from training.statistics import mcnemar

    old = {c.id: c.student_right for c in before}
    both = [c for c in now if c.id in old]
    return Flips(
        fixed=tuple(c.id for c in both if c.student_right and not old[c.id]),
        broken=tuple(c.id for c in both if not c.student_right and old[c.id]),
        p_value=mcnemar([c.student_right for c in both], [old[c.id] for c in both]),
    )


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A training row near a mistake."""

    id: str
    text: str
    label: str
    similarity: float
    conflicts: bool
    """Its label is not what would have been right: it may have taught the mistake."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The training rows nearest to a mistake."""

    case_id: str
    neighbours: tuple[Neighbour, ...]
    has_similar: bool
    """False: nothing like it was trained on, so rows of its kind are missing."""
    verdict: str


def trace(
    spec: AnswerSpec, mistakes: Sequence[Case], train: Sequence[Example], count: int = 3
) -> list[Trace]:
    """The `count` nearest training rows of each mistake, by cosine of word and word-pair TF-IDF."""
    if not mistakes or not train:
        return []
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    known = features.fit_transform([text_of(e) for e in train])
    asked = features.transform([c.text for c in mistakes])
    near = (asked @ known.T).toarray()
    found = []
    for case, row in zip(mistakes, near, strict=True):
        best = np.argsort(-row, kind="stable")[:count]
        neighbours = tuple(
            Neighbour(
                train[i].id, text_of(train[i]), train[i].completion, float(row[i]),
                not is_right(spec, train[i].completion, case.reference),
            )
            for i in best
        )  # fmt: skip
        similar = [n for n in neighbours if n.similarity >= SIMILAR]
        found.append(Trace(case.id, neighbours, bool(similar), _verdict(similar)))
    return found


def _verdict(similar: Sequence[Neighbour]) -> str:
    if not similar:
        return "no similar training row: add rows of this kind"
    against = sum(n.conflicts for n in similar)
    if against == len(similar):
        return "similar training rows say otherwise: check their labels"
    if against:
        return "similar training rows contradict each other: check their labels"
    return "similar training rows are right: more of them, more steps or a bigger model"
