"""Student against gold, teacher against gold, student against teacher, slice by slice; the worst first. Pure.

Two questions are asked of each slice, and both p-values are corrected by Holm for all slices that were asked: does the
student err more in it than elsewhere (Fisher, one-sided), and is it worse than the teacher there (McNemar, two-sided)? What a slice
is, `mistakes` and `slices` decide; a slice with too few rows is listed and not tested.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monitoring.intervals import holm
from router.answer_spec import AnswerSpec
from router.difficulty import language_of
from training import mistakes, slices
from training.dataset import Example
from training.metrics import Rate, is_right, rate
from training.predict import Prediction
from training.statistics import mcnemar

SMALL_ALPHA = 0.05
"""A corrected p-value below this counts as shown."""


@dataclass(frozen=True, slots=True)
class SliceFigures:
    """One slice. Rates are None where no row of it can say: no gold answers, or none of the teacher's."""

    name: str
    rows: int
    has_enough_rows: bool
    """False: too few rows in it or beside it for a test; its figures are only listed."""
    student: Rate
    """Right against the reference: gold where a row has it, else the teacher."""
    elsewhere: Rate
    """The same, of all other rows."""
    student_gold: Rate | None
    teacher_gold: Rate | None
    student_teacher: Rate | None
    """How often the student says what the teacher says."""
    p_value: float | None
    """Whether the student errs more here than elsewhere; None when not tested."""
    p_against_teacher: float | None
    """Whether student and teacher differ in being right here; None when not tested, or nobody can say."""
    gap_to_teacher: float | None = None
    """The student's share right less the teacher's, on the rows of that test: those that gold can judge both on."""

    @property
    def is_worse(self) -> bool:
        """Whether it is shown that the student errs more here than elsewhere."""
        return self.p_value is not None and self.p_value < SMALL_ALPHA

    @property
    def loses_to_teacher(self) -> bool:
        """Whether it is shown that the student is worse than the teacher here."""
        return (
            self.p_against_teacher is not None
            and self.p_against_teacher < SMALL_ALPHA
            and self.gap_to_teacher is not None
            and self.gap_to_teacher < 0
        )


def slice_figures(
    spec: AnswerSpec, examples: Sequence[Example], answers: Sequence[Prediction], words: int = 20
) -> tuple[SliceFigures, ...]:
    """Figures of every slice, those most surely worse than the rest first, those with too few rows last.

    Args:
        words: the most frequent words and pairs of words that make a slice each.
    """
    rows = mistakes.cases(spec, examples, answers)
    if not rows:
        return ()
    members = _members(rows, examples, words)
    found = _Rows.of(spec, rows)
    p_values = {one.name: one.p_value for one in slices.tested(members, ~found.right)}
    against = _against_teacher({n: m for n, m in members.items() if n in p_values}, found)
    result = [
        SliceFigures(
            name=name,
            rows=int(inside.sum()),
            has_enough_rows=name in p_values,
            student=_rate(found.right, inside),
            elsewhere=_rate(found.right, ~inside),
            student_gold=_known(found.right, inside & found.has_gold),
            teacher_gold=_known(found.teacher_right, inside & found.has_gold & found.has_teacher),
            student_teacher=_known(found.same, inside & found.has_teacher),
            p_value=p_values.get(name),
            p_against_teacher=against.get(name),
            gap_to_teacher=_gap(found, inside),
        )
        for name, inside in members.items()
    ]
    return tuple(
        sorted(result, key=lambda s: (not s.has_enough_rows, s.p_value or 0.0, s.student.share))
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is known a row; [rows] truth values each."""

    right: np.ndarray
    has_gold: np.ndarray
    has_teacher: np.ndarray
    teacher_right: np.ndarray
    """Against gold; False where there is none."""
    same: np.ndarray
    """As the teacher says; False without one."""

    @classmethod
    def of(cls, spec: AnswerSpec, rows: Sequence[mistakes.Case]) -> "_Rows":
        """Compare student and teacher where both are there; the rest the cases know."""
        return cls(
            right=np.array([c.student_right for c in rows]),
            has_gold=np.array([c.gold is not None for c in rows]),
            has_teacher=np.array([c.teacher is not None for c in rows]),
            teacher_right=np.array([c.teacher_right is True for c in rows]),
            same=np.array(
                [c.teacher is not None and is_right(spec, c.student, c.teacher) for c in rows]
            ),
        )


def _members(
    rows: Sequence[mistakes.Case], examples: Sequence[Example], words: int
) -> dict[str, np.ndarray]:
    """The slices of `mistakes`, source and language beside them; what holds for all rows is no slice."""
    found = mistakes.members_of(rows, words)
    found |= slices.by_value("source", [e.source for e in examples])
    found |= slices.by_value("language", [language_of(c.text) or "unknown" for c in rows])
    return {name: inside for name, inside in found.items() if inside.any() and not inside.all()}


def _against_teacher(members: slices.Members, rows: _Rows) -> dict[str, float]:
    """Slice to its corrected p-value, for slices with enough rows that gold can judge both on.

    "The teacher is wrong too" is left out: it was cut by the answer to this very question.
    """
    both = rows.has_gold & rows.has_teacher
    asked = {
        name: inside & both
        for name, inside in members.items()
        if int((inside & both).sum()) >= slices.LEAST_ROWS and name != mistakes.TEACHER_WRONG
    }
    p_values = [
        mcnemar(rows.right[inside].tolist(), rows.teacher_right[inside].tolist())
        for inside in asked.values()
    ]
    return dict(zip(asked, holm(p_values), strict=True))


def _gap(rows: _Rows, inside: np.ndarray) -> float | None:
    both = inside & rows.has_gold & rows.has_teacher
    if not both.any():
        return None
    return float(rows.right[both].mean() - rows.teacher_right[both].mean())


def _rate(values: np.ndarray, of: np.ndarray) -> Rate:
    return rate(int(values[of].sum()), int(of.sum()))


def _known(values: np.ndarray, of: np.ndarray) -> Rate | None:
    return _rate(values, of) if of.any() else None
