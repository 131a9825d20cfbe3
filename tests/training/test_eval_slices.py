"""Slices of a test set: three comparisons each, corrected for the number of slices, small ones named as small."""

import numpy as np
import pytest

from router.answer_spec import AnswerSpec
from training.dataset import Example
from training.eval_slices import slice_figures
from training.mistakes import TEACHER_WRONG
from training.predict import Prediction
from training.slices import by_length
from training.statistics import mcnemar

SPEC = AnswerSpec(kind="label", labels=("yes", "no"))


def row(number: int, label: str, source: str, teacher: str | None, gold: bool = True) -> Example:
    text = f"{'parcel' if source == 'mail' else 'letter'} {'x' * (number % 7)}"
    return Example(
        f"r{number}", "t", ({"role": "user", "content": text},), label, teacher, label if gold else None, source
    )  # fmt: skip


def flip(label: str) -> str:
    return {"yes": "no", "no": "yes"}[label]


def test_the_slice_in_which_the_student_is_worse_comes_first() -> None:
    draw = np.random.default_rng(3)
    rows, answers = [], []
    for n in range(300):
        label, source = ["yes", "no"][n % 2], "mail" if n % 3 == 0 else "chat"
        is_right = draw.random() < (0.5 if source == "mail" else 0.96)
        rows.append(row(n, label, source, flip(label) if n % 20 == 0 else label))
        answers.append(Prediction(label if is_right else flip(label), 0.9))
    found = slice_figures(SPEC, rows, answers)
    worst = found[0]
    assert worst.name in ("source mail", "has “parcel”")
    assert worst.is_worse
    assert worst.loses_to_teacher
    mail = next(s for s in found if s.name == "source mail")
    assert mail.rows == 100
    assert mail.student_gold is not None
    assert mail.teacher_gold is not None
    assert mail.student_gold.share < 0.65 < 0.9 < mail.teacher_gold.share
    assert mail.student.share < mail.elsewhere.share
    chat = next(s for s in found if s.name == "source chat")
    assert not chat.is_worse
    assert {"class yes", "class no"} <= {s.name for s in found}
    assert sum(s.name.startswith("length") for s in found) == 4
    assert not [s for s in found if s.name.startswith("class") and s.is_worse]


def test_without_gold_only_the_teacher_can_be_compared_with() -> None:
    rows = [row(n, "yes", "mail" if n % 2 else "chat", "yes", gold=False) for n in range(40)]
    found = slice_figures(SPEC, rows, [Prediction("yes" if n % 4 else "no", 0.9) for n in range(40)])  # fmt: skip
    mail = next(s for s in found if s.name == "source mail")
    assert mail.student_gold is None
    assert mail.teacher_gold is None
    assert mail.p_against_teacher is None
    assert not mail.loses_to_teacher
    assert mail.student_teacher is not None
    assert (mail.student_teacher.right, mail.student_teacher.rows) == (20, 20)


def test_a_slice_with_too_few_rows_is_listed_last_and_not_tested() -> None:
    rows = [row(n, "yes", "rare" if n < 5 else "chat", "yes") for n in range(60)]
    answers = [Prediction("no" if n < 5 else "yes", 0.9) for n in range(60)]
    found = slice_figures(SPEC, rows, answers)
    rare = next(s for s in found if s.name == "source rare")
    assert (rare.rows, rare.has_enough_rows, rare.p_value, rare.is_worse) == (5, False, None, False)
    assert rare.student.share == 0.0
    places = [s.has_enough_rows for s in found]
    assert places == sorted(places, reverse=True)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_few_rows_are_no_reason_to_fail(count: int) -> None:
    rows = [row(n, "yes", "mail", "yes") for n in range(count)]
    found = slice_figures(SPEC, rows, [Prediction("no", 0.1)] * count)
    assert all(s.p_value is None for s in found)


def test_worse_than_the_teacher_is_read_on_rows_that_both_answered() -> None:
    """In the mail the student beats the teacher wherever there is one, and errs where there is none."""
    rows, answers = [], []
    for n in range(80):
        source, label = "mail" if n < 60 else "chat", ["yes", "no"][n % 2]
        teacher = (flip(label) if n % 3 == 0 else label) if n < 30 or source == "chat" else None
        rows.append(row(n, label, source, teacher))
        answers.append(Prediction(flip(label) if teacher is None else label, 0.9))
    mail = next(s for s in slice_figures(SPEC, rows, answers) if s.name == "source mail")
    assert mail.student_gold is not None
    assert mail.teacher_gold is not None
    assert mail.student_gold.share < mail.teacher_gold.share, "over other rows"
    assert mail.p_against_teacher is not None
    assert mail.p_against_teacher < 0.05
    assert mail.gap_to_teacher == pytest.approx(1 / 3)
    assert not mail.loses_to_teacher


def test_p_values_against_the_teacher_are_corrected_for_every_slice_that_is_asked() -> None:
    """The mail's is the smallest, so Holm's correction is the number of slices; one that was cut by the answer is not asked."""
    rows, answers = [], []
    for n in range(120):
        label, source = ["yes", "no"][n % 2], "mail" if n < 40 else "chat"
        rows.append(row(n, label, source, flip(label) if n >= 100 else label))
        answers.append(Prediction(flip(label) if n < 16 or n >= 100 else label, 0.9))
    found = slice_figures(SPEC, rows, answers)
    cut = next(s for s in found if s.name == TEACHER_WRONG)
    assert (cut.has_enough_rows, cut.p_against_teacher) == (True, None)
    asked = {s.name: s.p_against_teacher for s in found if s.p_against_teacher is not None}
    raw = mcnemar([n >= 16 for n in range(40)], [True] * 40)
    assert len(asked) > 5
    assert asked["source mail"] == pytest.approx(raw * len(asked))


def test_every_row_is_in_one_quarter_by_length() -> None:
    texts = ["", "", "a", "bb", "bb", "ccc", "dddd", "d" * 50]
    found = by_length(texts)
    assert sum(found.values(), np.zeros(len(texts), dtype=int)).tolist() == [1] * len(texts)
