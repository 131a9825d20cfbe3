"""Baselines, figures, the hybrid curve and the report card."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from router.answer_spec import AnswerSpec
from router.policy import Price
from tests.training.conftest import route, rows
from training import build, evaluate, evaluate_files, hybrid
from training.baselines import FITS, Baseline
from training.dataset import Dataset, Example
from training.errors import DataError
from training.evaluate_words import in_words
from training.metrics import figures
from training.predict import Prediction, Progress
from training.statistics import Paired, is_non_inferior, mcnemar, paired, rows_needed

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


@dataclass(frozen=True)
class Shortener:
    """Says the completion without its last word."""

    name: str = "student"

    def predict(
        self, examples: Sequence[Example], progress: Progress | None = None
    ) -> list[Prediction]:
        return [Prediction(e.completion.rsplit(" ", 1)[0], 0.8) for e in examples]


def text_dataset(folder: Path) -> Dataset:
    """80 rows whose answers are sentences, with gold."""
    made = []
    for row in rows(80):
        text = row.messages[0]["content"]
        gold, teacher = f"You wrote: {text} We will see to it", f"You wrote: {text} We see to it soon"  # fmt: skip
        made.append(build.Row(row.id, row.messages, teacher, gold, "traffic", "gpt-4o", row.at))
    letters = route()
    spec = AnswerSpec(kind="text")
    return build.build(made, letters.model_copy(update={"answer": spec}), "mail", folder, query={})


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
    assert rows_needed(0.0, 0.2) is None
    assert mcnemar([True], [True]) == 1.0


def tango_by_search(first: int, second: int, rows: int, margin: float) -> float:
    """Tango's score, its restricted maximum of the likelihood searched for, not solved for."""

    def unlikely(share: float) -> float:
        chances = [share - margin, share, 1 - 2 * share + margin]
        counts = [first, second, rows - first - second]
        return -sum(n * math.log(c) for n, c in zip(counts, chances, strict=True) if n)

    edge = 1e-12
    share = minimize_scalar(
        unlikely, bounds=(margin + edge, (1 + margin) / 2 - edge), method="bounded", options={"xatol": 1e-12}
    ).x  # fmt: skip
    spread = math.sqrt(rows * (2 * share - margin - margin**2))
    return float((first - second + rows * margin) / spread)


@pytest.mark.parametrize("margin", [0.02, 0.05, 0.2])
def test_non_inferiority_is_tangos_score_test(margin: float) -> None:
    shown = set()
    for count in (30, 100, 400):
        for first in (0, 1, 5, 12):
            for second in (0, 1, 2, 4, 9, 14):
                score = tango_by_search(first, second, count, margin)
                if abs(score - 1.96) > 0.01:  # nearer than that the search is not exact
                    counts = Paired(first, second, count - first - second, 0, 0, 0, 0, 1)
                    assert is_non_inferior(counts, margin) == (score > 1.96), (count, first, second)
                    shown.add(score > 1.96)
    assert shown == {True, False}


def test_a_margin_of_nothing_is_a_test_of_being_better() -> None:
    assert not is_non_inferior(paired([True] * 500, [True] * 500), 0.0)
    assert is_non_inferior(Paired(20, 5, 75, 0, 0, 0, 0, 1), 0.0)
    assert not is_non_inferior(Paired(14, 10, 76, 0, 0, 0, 0, 1), 0.0)


@pytest.mark.parametrize(
    ("rows", "is_shown"), [(0, False), (10, False), (72, False), (73, True), (400, True)]
)
def test_rows_without_a_difference_show_only_so_much(rows: int, is_shown: bool) -> None:
    assert is_non_inferior(paired([True] * rows, [True] * rows), 0.05) is is_shown


@pytest.mark.parametrize("rows", [40, 100, 300])
def test_a_student_that_is_worse_by_the_margin_seldom_passes(rows: int) -> None:
    """Tango's test keeps its level where the bootstrap interval does not."""
    generator = np.random.default_rng(1)
    passed = 0
    for only_second in generator.binomial(rows, 0.05, size=2000):
        counts = Paired(0, int(only_second), rows - int(only_second), 0, 0, 0, 0, 1)
        passed += is_non_inferior(counts, 0.05)
    assert passed / 2000 < 0.045


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
    report = in_words(report)
    assert any("loses to TF-IDF" in s or "level with TF-IDF" in s for s in report.sentences)
    files = evaluate_files.write(report, made, tmp_path / "out")
    assert all(path.stat().st_size > 500 for path in files.values())
    written = json.loads(files["evaluation"].read_text())
    main = written["tests"][0]
    assert main["rows"] == len(made.of("test"))
    assert {s["name"] for s in main["slices"]} >= {"class refund", "the teacher is wrong too"}
    lines = files["answers test"].read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [e.id for e in made.of("test")]
    assert json.loads(lines[0])["answers"]["student"].keys() == {"text", "right", "confidence"}
    assert {"slices test", "roc test", "hybrid test"} <= files.keys()
    student = next(line for line in main["lines"] if line["name"] == "student")
    assert student["scores"]["of_confidence"]["value"] == 1.0, "it is unsure of its mistakes alone"
    assert student["form"]["extraction"]["kind"]["f1"] == pytest.approx(
        student["figures"]["accuracy"]["share"]
    )


def test_a_margin_of_nothing_is_evaluated_and_said(tmp_path: Path) -> None:
    report = in_words(evaluate.evaluate(gold_dataset(tmp_path / "d"), Guesser(3), margin=0.0))
    assert report.tests[0].rows_needed is None
    assert any("margin of 0 points (no number of rows" in s for s in report.sentences)


def test_costs_stand_beside_quality(tmp_path: Path) -> None:
    made = gold_dataset(tmp_path / "d")
    report = evaluate.evaluate(
        made, Guesser(3), price=Price(input=1, output=2), student_price=Price(input=0.1)
    )
    teacher, student = (report.tests[0].line(n).cost for n in ("teacher", "student"))
    rows = made.of("test")
    tokens = [math.ceil(len(e.messages[0]["content"]) / 4) + 8 for e in rows]
    answers = [math.ceil(len(e.teacher or "") / 4) for e in rows]
    assert teacher.usd_per_1000 == pytest.approx(
        1000 * (sum(tokens) + 2 * sum(answers)) / 1e6 / len(rows)
    )
    assert student.usd_per_1000 == pytest.approx(1000 * 0.1 * sum(tokens) / 1e6 / len(rows))
    assert (teacher.tokens_are_estimated, teacher.p50_seconds) == (True, None)
    assert report.tests[0].line("majority").cost.usd_per_1000 is None
    assert report.tests[0].hybrid is not None
    assert teacher.usd_per_1000 is not None
    assert student.usd_per_1000 is not None
    assert report.savings["hybrid_usd_per_1000"] == pytest.approx(
        student.usd_per_1000 + report.tests[0].hybrid.handed_over * teacher.usd_per_1000
    )


def test_free_text_has_rouge_a_row_and_no_baselines(tmp_path: Path) -> None:
    made = text_dataset(tmp_path / "d")
    report = in_words(evaluate.evaluate(made, Shortener()))
    test = report.tests[0]
    assert [line.name for line in test.lines] == ["student", "teacher"]
    student = test.line("student")
    assert student.text is not None
    assert student.form is None
    assert 0.9 < student.text.rouge["rougeL"].value < 1
    assert student.text.words.value < student.text.reference_words.value
    gap = test.rouge_against_teacher
    assert gap is not None
    means = [line.text.rouge["rougeL"].value for line in test.lines if line.text]
    assert gap.difference == pytest.approx(means[0] - means[1])
    assert gap.low > 0.02 > gap.p_value
    assert any("ROUGE-L against the teacher's +" in s for s in report.sentences)
    files = evaluate_files.write(report, made, tmp_path / "out")
    first = json.loads(files["answers test"].read_text().splitlines()[0])["answers"]["student"]
    assert first["rouge"].keys() == {"rouge1", "rouge2", "rougeL", "rougeLsum"}


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
