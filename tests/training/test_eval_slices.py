"""Slices of a test set: three comparisons each, corrected for the number of slices, small ones named as small."""

import numpy as np
import pytest

from router.answer_spec import AnswerSpec
from training.dataset import Example
from training.eval_slices import slice_figures
from training.predict import Prediction

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
