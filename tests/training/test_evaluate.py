"""Baselines, figures, the hybrid curve and the report card."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.answer_spec import AnswerSpec
from tests.training.conftest import route, rows
from training import build, evaluate, hybrid
from training.baselines import FITS, Baseline
from training.dataset import Dataset, Example
from training.errors import DataError
from training.metrics import figures
from training.predict import Prediction, Progress
from training.statistics import is_non_inferior, mcnemar, paired, rows_needed

SPEC = AnswerSpec.model_validate(
    {
        "kind": "json",
        "compare": {"fields": ["kind"]},
        "schema": {"properties": {"kind": {"enum": ["a", "b"]}}},
    }
)


@dataclass(frozen=True)
class Guesser:
    """Right on rows whose number is not a multiple of `wrong`, and unsure of the others."""

    wrong: int
    name: str = "student"

    def predict(
        self, examples: Sequence[Example], progress: Progress | None = None
    ) -> list[Prediction]:
        found = []
        for e in examples:
            number = int("".join(c for c in e.id if c.isdigit()))
            is_wrong = number % self.wrong == 0
            other = '{"kind":"refund"}' if "order" in e.completion else '{"kind":"order"}'
            found.append(Prediction(other if is_wrong else e.completion, 0.4 if is_wrong else 0.9))
        return found


def gold_dataset(folder: Path) -> Dataset:
    """150 rows, the test rows with gold; the teacher is wrong on some of them."""
    made = []
    for n, row in enumerate(rows(150)):
        gold = row.teacher
        teacher = json.dumps({"kind": "order"}) if n % 9 == 0 else row.teacher
        made.append(build.Row(row.id, row.messages, teacher, gold, "traffic", "t", float(n)))
    return build.build(made, route(), "mail", folder, query={})


@pytest.mark.parametrize("name", list(FITS))
def test_each_baseline_answers_in_the_routes_form(dataset: Dataset, name: str) -> None:
    baseline = Baseline.fit(name, dataset.of("train"), dataset.info.answer)
    test = dataset.of("test")
    found = baseline.predict(test)
    assert len(found) == len(test)
    assert all(p.text in ('{"kind":"refund"}', '{"kind":"order"}') for p in found)
    assert all(0 < p.confidence <= 1 for p in found)
    right = sum(p.text == e.completion for p, e in zip(found, test, strict=True))
    assert right > 0.8 * len(test) if name != "majority" else right > 0


def test_a_baseline_without_rows_or_classes_is_refused(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="no examples"):
        Baseline.fit("majority", [], dataset.info.answer)
    with pytest.raises(DataError, match="have no classes"):
        Baseline.fit("majority", dataset.of("train"), {"kind": "text"})


def test_unparseable_answers_are_wrong_and_counted_apart() -> None:
    found = figures(
        SPEC,
        ['{"kind":"a"}', "sorry", '{"kind": "b"}', '{"kind":"a"}'],
        ['{"kind":"a"}'] * 2 + ['{"kind":"b"}'] * 2,
    )
    assert (found.accuracy.right, found.unparseable, found.right) == (
        2,
        1,
        (True, False, True, False),
    )
    field = found.fields["kind"]
    assert field.confusion == {"a": {"a": 1, "(unparseable)": 1}, "b": {"b": 1, "a": 1}}
    assert field.classes["a"].recall == 0.5
    assert field.balanced_accuracy == 0.5
    assert field.accuracy.low < 0.5 < field.accuracy.high


def test_paired_tests_by_hand() -> None:
    one = [True] * 12 + [False] * 2 + [True] * 30
    other = [False] * 12 + [True] * 2 + [True] * 30
    assert mcnemar(one, other) == pytest.approx(0.012939, abs=1e-5)
    found = paired(one, other)
    assert (found.only_first, found.only_second, found.both, found.neither) == (12, 2, 30, 0)
    assert found.difference == pytest.approx(10 / 44)
    assert found.low < found.difference < found.high
    assert is_non_inferior(found, 0.05)
    assert not is_non_inferior(paired(other, one), 0.05)
    assert rows_needed(0.05, 0.2) == 628
    assert mcnemar([True], [True]) == 1.0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_the_curve_begins_with_the_student_and_ends_with_the_teacher(
    cases: list[tuple[float, bool, bool]],
) -> None:
    confidence, student, teacher = (list(c) for c in zip(*cases, strict=True))
    points = hybrid.curve(confidence, student, teacher)
    assert points[0].accuracy == pytest.approx(sum(student) / len(cases))
    assert points[-1].accuracy == pytest.approx(sum(teacher) / len(cases))
    assert [p.handed_over for p in points] == sorted(p.handed_over for p in points)
    for point in points:
        kept = [c >= point.min_confidence for c in confidence]
        if point is points[-1] and max(confidence) == 1.0:
            continue  # a cut of 1 keeps answers that are certain
        assert 1 - sum(kept) / len(kept) == pytest.approx(point.handed_over)


def test_a_planned_share_is_kept_to_where_handing_over_never_hurts() -> None:
    confidence = [i / 100 for i in range(100)]
    student = [i % 3 > 0 for i in range(100)]
    rows = (confidence, student, [True] * 100)
    assert hybrid.evaluate(rows, rows).handed_over > 0.5
    assert hybrid.evaluate(rows, rows, hand_over=0.25).handed_over == pytest.approx(0.25)
    assert hybrid.evaluate(rows, rows, hand_over=0.0).handed_over == 0.0


def test_validation_rows_count_by_the_mix_that_is_meant() -> None:
    # One row in ten is of the class that the student gets wrong; where half are, half are handed over.
    confidence = [0.1] * 10 + [0.9] * 90
    student, teacher = [False] * 10 + [True] * 90, [True] * 100
    even = [5.0] * 10 + [5 / 9] * 90
    assert hybrid.curve(confidence, student, teacher)[1].handed_over == pytest.approx(0.1)
    weighted = hybrid.curve(confidence, student, teacher, even)
    assert weighted[0].accuracy == pytest.approx(0.5)
    assert weighted[1].handed_over == pytest.approx(0.5)
    assert weighted[-1].handed_over == 1.0


def test_a_report_card_says_what_it_shows(tmp_path: Path) -> None:
    made = gold_dataset(tmp_path / "d")
    report = evaluate.evaluate(made, Guesser(3))
    test = report.tests[0]
    assert test.reference == "gold"
    assert {line.name for line in test.lines} == {*FITS, "student", "teacher"}
    assert test.line("teacher").figures.accuracy.share < 1
    assert test.student_against_teacher is not None
    assert test.hybrid is not None
    assert test.hybrid.accuracy.share > test.hybrid.student_alone.share
    assert any("loses to TF-IDF" in s or "level with TF-IDF" in s for s in report.sentences)
    files = evaluate.write(report, made, tmp_path / "out")
    assert all(path.stat().st_size > 500 for path in files.values())
    written = json.loads(files["evaluation"].read_text())
    assert written["tests"][0]["rows"] == len(made.of("test"))


def test_without_gold_the_teacher_is_the_reference(dataset: Dataset) -> None:
    report = evaluate.evaluate(dataset, Guesser(4))
    assert report.tests[0].reference == "teacher"
    assert report.tests[0].hybrid is None


def test_no_test_rows_is_refused(tmp_path: Path) -> None:
    made = build.build(
        rows(20), route(), "mail", tmp_path, query={}, options=build.BuildOptions(test_share=0)
    )
    with pytest.raises(DataError, match="no test rows"):
        evaluate.evaluate(made, Guesser(3))
