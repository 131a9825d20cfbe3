"""Figures of tool calls, and a report card of a route whose answers are calls."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from router.tool_calls import written
from tests.training.tool_rows import SPEC, TOOLS, call, tool_route, tool_rows, wanted
from training import build, evaluate, evaluate_files
from training.dataset import Dataset, Example
from training.eval_calls import CallFigures, call_figures
from training.evaluate_show import show
from training.evaluate_words import in_words
from training.metrics import figures
from training.predict import Prediction, Progress

BROKEN = '<tool_call>{"name":'


def of(*pairs: tuple[str, str]) -> CallFigures:
    return call_figures(
        SPEC, [p[0] for p in pairs], [p[1] for p in pairs], [tuple(TOOLS)] * len(pairs)
    )


def test_names_arguments_and_abstention_are_counted_apart() -> None:
    right = call("refund", order=7, why="late")
    found = of(
        (call("refund", why="late", order=7.0), right),
        (call("refund", order=8, why="late"), right),
        (call("order", item="apple"), right),
        ("I do not know", right),
        (BROKEN, right),
        ("no tool helps", "none"),
        (call("order", item="apple"), "none"),
        (BROKEN, "none"),
    )
    assert (found.names.right, found.names.rows) == (2, 5)
    assert (found.arguments.right, found.arguments.rows) == (1, 5)
    assert (found.missed.right, found.missed.rows) == (1, 5)
    assert (found.abstained.right, found.spurious.right, found.abstained.rows) == (1, 1, 3)
    assert (found.unparseable.right, found.unparseable.rows) == (2, 8)
    assert found.names.low < 0.4 < found.names.high
    every = found.all_arguments
    assert (every.precision.right, every.precision.rows) == (3, 6)
    assert (every.recall.right, every.recall.rows) == (3, 10)
    assert every.f1 == pytest.approx(6 / 16)
    assert list(found.by_argument) == ["refund.order", "refund.why", "order.item"]
    assert (found.by_argument["refund.why"].recall.right, found.by_argument["order.item"].precision.rows) == (2, 2)  # fmt: skip


def test_true_is_not_1_and_key_order_is_nothing() -> None:
    nested, other = {"a": [1, True]}, {"a": [1, 1]}
    found = of((call("f", x=nested), call("f", x=other)), (call("f", x=other), call("f", x=other)))
    assert found.arguments.right == 1


def test_normalised_arguments_forgive_case_and_spelling() -> None:
    found = of((call("refund", order=7, why=" Late."), call("refund", order=7, why="late")))
    every = found.all_arguments
    assert (every.precision.right, every.normalised_f1, every.f1) == (1, 1.0, 0.5)
    assert found.arguments.right == 0


def test_calls_of_one_tool_are_paired_by_what_agrees() -> None:
    one, two = call("refund", order=1, why="a"), call("refund", order=2, why="b")
    found = of((f"{two}\n{one}", f"{one}\n{two}"), (two, f"{one}\n{two}"), (f"{one}{one}", one))
    assert (found.names.right, found.arguments.right) == (1, 1)
    every = found.all_arguments
    assert (every.precision.right, every.precision.rows) == (8, 10)
    assert (every.recall.right, every.recall.rows) == (8, 10)


@pytest.mark.parametrize(
    ("said", "valid", "unknown"),
    [
        pytest.param(call("refund", order=9), 1, 0, id="wrong but valid"),
        pytest.param(call("refund", order="9"), 0, 0, id="of another type"),
        pytest.param(call("order", item="plum"), 0, 0, id="outside an enum"),
        pytest.param(call("delete"), 0, 1, id="a tool that is none"),
    ],
)
def test_calls_are_held_to_their_own_tools_schema(said: str, valid: int, unknown: int) -> None:
    found = of((said, call("refund", order=7)), ("no tool helps", "none"))
    assert found.valid is not None
    assert (found.valid.right, found.valid.rows, found.unknown_tools) == (valid, 1, unknown)


def test_without_tools_nothing_is_said_of_schemas() -> None:
    found = call_figures(SPEC, [call("f")], [call("f")], [()])
    assert (found.valid, found.unknown_tools, found.arguments.right) == (None, 0, 1)


def test_no_rows_are_no_shares() -> None:
    found = of(("words", "none"))
    assert (found.names.rows, found.names.share, found.all_arguments.f1) == (0, 0.0, 1.0)


def test_the_tools_called_are_classes() -> None:
    both = call("refund", order=1) + call("order", item="apple")
    found = figures(SPEC, [both, "no tool helps", BROKEN], [both, call("order", item="pear"), "x"])
    assert (found.accuracy.right, found.unparseable) == (1, 1)
    assert found.fields["tool_call"].confusion == {
        "order+refund": {"order+refund": 1},
        "order": {"(no call)": 1},
        "(no call)": {"(unparseable)": 1},
    }


@dataclass(frozen=True)
class Student:
    """Says what `change` makes of the right answer, by the row's number."""

    change: Callable[[int, str], str]
    name: str = "student"

    def predict(
        self, examples: Sequence[Example], progress: Progress | None = None
    ) -> list[Prediction]:
        return [
            Prediction(self.change(int(e.id[1:].removesuffix("#balanced")), e.completion), 0.9)
            for e in examples
        ]


def needless_and_cut(number: int, right: str) -> str:
    """Calls where none is wanted on some rows, is cut off on others."""
    if number % 10 == 0:
        return call("order", item="plum")
    return right[:20] if number % 7 == 0 else right


def dataset(folder: Path, count: int = 120) -> Dataset:
    """Gold rows; the teacher errs on every ninth."""
    rows = tool_rows(count, lambda n: wanted(n) if n % 9 else "no tool helps")
    return build.build(rows, tool_route(), "mail", folder, query={})


def test_a_report_card_of_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = dataset(tmp_path)
    report = in_words(evaluate.evaluate(made, Student(needless_and_cut)))
    test = report.tests[0]
    assert [line.name for line in test.lines] == ["student", "teacher"]
    student, teacher = test.line("student"), test.line("teacher")
    assert student.calls is not None
    assert teacher.calls is not None
    assert (student.form, student.text) == (None, None)
    numbers = [int(e.id[1:]) for e in test.examples]
    needless = sum(n % 10 == 0 for n in numbers)
    assert student.calls.spurious.right == needless > 0
    assert student.calls.unparseable.right == student.figures.unparseable > 0
    assert teacher.calls.missed.right == sum(n % 9 == 0 and n % 5 != 0 for n in numbers) > 0
    assert student.calls.valid is not None
    assert student.calls.valid.rows - student.calls.valid.right == needless
    assert any("rows that want calls" in s for s in report.sentences)
    assert any(f"make none; {needless} make one" in s for s in report.sentences)
    assert any("valid under their tools' schemas" in s for s in report.sentences)
    files = evaluate_files.write(report, made, tmp_path / "out")
    kept = json.loads(files["evaluation"].read_text())["tests"][0]["lines"][0]["calls"]
    assert kept["spurious"]["right"] == needless
    assert "refund.order" in kept["by_argument"]
    assert (tmp_path / "out" / "confusion-test-tool_call.png").exists()
    show(report, {})
    shown = capsys.readouterr().out
    assert "tool calls against the gold answers" in shown
    assert "refund.order" in shown


def test_a_student_that_never_calls_is_right_where_none_is_wanted_alone(tmp_path: Path) -> None:
    """Two answers without calls are equal; a text with calls is none of them."""
    test = evaluate.evaluate(dataset(tmp_path), Student(lambda n, right: "no tool helps")).tests[0]
    student = test.line("student")
    assert student.calls is not None
    assert student.figures.accuracy.right == student.calls.abstained.rows < test.rows
    assert student.calls.missed.share == 1.0


def test_a_test_set_without_abstentions_says_so(tmp_path: Path) -> None:
    rows = [row for n, row in enumerate(tool_rows(120)) if n % 5]
    made = build.build(rows, tool_route(), "mail", tmp_path, query={})
    report = in_words(evaluate.evaluate(made, Student(lambda n, right: right)))
    assert any("nothing is known of needless ones" in s for s in report.sentences)
    assert written([]) == "[]"
