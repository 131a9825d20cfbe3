"""A run's report card: the student beside its baselines and the teacher, on frozen test sets, with intervals.

Against gold where the rows have it, else against the teacher, and the report says which. Sentences say what the figures
show, also when the student loses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from router.answer_spec import AnswerSpec
from router.policy import Price
from training import hybrid, plots
from training.baselines import FITS, Baseline, Recorded
from training.dataset import Dataset, Example, Split, class_of
from training.errors import DataError
from training.metrics import Figures, figures
from training.predict import Prediction, Predictor, Progress
from training.priors import row_weights
from training.statistics import Paired, is_non_inferior, paired, rows_needed

STUDENT, TEACHER, RIVAL = "student", "teacher", "TF-IDF + logistic regression"


@dataclass(frozen=True, slots=True)
class Line:
    """One answerer on one test set."""

    name: str
    figures: Figures
    against_teacher: float | None
    """Share of rows on which it says what the teacher says."""
    seconds_per_row: float


@dataclass(frozen=True, slots=True)
class TestReport:
    """All answerers on one test set."""

    split: Split
    rows: int
    reference: str
    """`gold` or `teacher`: what right means here."""
    lines: tuple[Line, ...]
    student_against_rival: Paired | None
    student_against_teacher: Paired | None
    margin: float
    non_inferior: bool | None
    rows_needed: int | None
    hybrid: hybrid.HybridResult | None

    def line(self, name: str) -> Line:
        """The line of one answerer."""
        return next(line for line in self.lines if line.name == name)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The whole report; `sentences` says in words what it shows."""

    task: str
    dataset: str
    tests: tuple[TestReport, ...]
    sentences: tuple[str, ...] = ()
    savings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Answers given once and kept: for a model whose weights change before it is asked again."""

    name: str
    answers: dict[str, Prediction]

    @classmethod
    def of(
        cls, answerer: Predictor, rows: Sequence[Example], progress: Progress | None = None
    ) -> "Fixed":
        """Ask for `rows` now."""
        found = answerer.predict(rows, progress)
        return cls(answerer.name, {e.id: p for e, p in zip(rows, found, strict=True)})

    def predict(
        self, examples: Sequence[Example], progress: Progress | None = None
    ) -> list[Prediction]:
        """What was answered then."""
        return [self.answers[e.id.removesuffix("#balanced")] for e in examples]


def test_rows(dataset: Dataset) -> list[Example]:
    """Each test input once, whichever test sets it is in."""
    return list(dataset.of("test"))


def references(examples: Sequence[Example]) -> tuple[list[str], str]:
    """What counts as right on these rows, and what it is called: gold where all have it, else the teacher."""
    if all(e.gold is not None for e in examples):
        return [e.gold or "" for e in examples], "gold"
    return [e.teacher or e.completion for e in examples], "teacher"


def evaluate(
    dataset: Dataset,
    student: Predictor,
    others: Sequence[Predictor] = (),
    *,
    margin: float = 0.05,
    price: Price | None = None,
    target_mix: Mapping[str, float] | None = None,
    hand_over: float | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score student, baselines and teacher on the dataset's test sets.

    Args:
        others: more answerers, such as the base model without an adapter.
        margin: how much worse than the teacher still counts as not inferior (a share).
        price: the teacher's, for what the hybrid saves.
        target_mix: the class mix that the student was trained for; validation rows are weighted to it.
        hand_over: share of validation that the hybrid's cut is planned to hand to the teacher; None lets its accuracy
            there decide.

    Raises:
        DataError: the dataset has no test rows, or no validation rows to fix the hybrid's cut on.
    """
    spec = AnswerSpec.model_validate(dataset.info.answer)
    learned = [*dataset.of("train"), *dataset.of("validation")]
    if not dataset.of("test"):
        raise DataError(f"{dataset.path}: no test rows; build with a test share or --test-file")
    if not dataset.of("validation"):
        raise DataError(f"{dataset.path}: no validation rows; build with a validation share")
    baselines: list[Predictor] = []
    if spec.kind in ("label", "json"):
        baselines = [Baseline.fit(name, learned, dataset.info.answer) for name in FITS]
    answerers: list[Predictor] = [*baselines, *others, student, Recorded(TEACHER)]
    held = list(dataset.of("validation"))
    held_answers = student.predict(held, progress)
    cut = _Cut(held, held_answers, _held_weights(dataset, held, target_mix), hand_over)
    tests = []
    known: dict[tuple[str, str], Prediction] = {}
    for split in ("test", "test_balanced"):
        rows = list(dataset.of(split))
        if rows:
            tests.append(_test(split, rows, answerers, spec, cut, margin, known, progress))
    report = Evaluation(dataset.info.task, dataset.info.digest, tuple(tests))
    saved = _savings(tests[0], price) if price else {}
    return Evaluation(report.task, report.dataset, report.tests, tuple(_sentences(report)), saved)


def _predict(
    answerer: Predictor,
    rows: Sequence[Example],
    known: dict[tuple[str, str], Prediction],
    progress: Progress | None,
) -> list[Prediction]:
    """Answers, each input asked once though it may be in both test sets."""
    names = [(answerer.name, e.id.removesuffix("#balanced")) for e in rows]
    missing = [i for i, name in enumerate(names) if name not in known]
    if missing:
        found = answerer.predict([rows[i] for i in missing], progress)
        known.update(zip((names[i] for i in missing), found, strict=True))
    return [known[name] for name in names]


def _test(
    split: Split,
    rows: list[Example],
    answerers: Sequence[Predictor],
    spec: AnswerSpec,
    cut: "_Cut",
    margin: float,
    known: dict[tuple[str, str], Prediction],
    progress: Progress | None,
) -> TestReport:
    wanted, reference = references(rows)
    teacher_says = [e.teacher for e in rows]
    lines = []
    answers: dict[str, list[Prediction]] = {}
    for answerer in answerers:
        found = _predict(answerer, rows, known, progress)
        answers[answerer.name] = found
        with_teacher = [(p.text, t) for p, t in zip(found, teacher_says, strict=True) if t]
        agreement = None
        if with_teacher:
            agreement = figures(
                spec, [p for p, _ in with_teacher], [t for _, t in with_teacher]
            ).accuracy.share
        seconds = sum(p.latency_seconds for p in found) / len(found)
        lines.append(
            Line(answerer.name, figures(spec, [p.text for p in found], wanted), agreement, seconds)
        )
    right = {line.name: line.figures.right for line in lines}
    has_teacher = all(teacher_says) and reference == "gold"
    against_teacher = paired(right[STUDENT], right[TEACHER]) if has_teacher else None
    needed = None
    if against_teacher:
        differ = (against_teacher.only_first + against_teacher.only_second) / len(rows)
        needed = rows_needed(margin, max(differ, 1 / len(rows)))
    return TestReport(
        split=split,
        rows=len(rows),
        reference=reference,
        lines=tuple(lines),
        student_against_rival=paired(right[STUDENT], right[RIVAL]) if RIVAL in right else None,
        student_against_teacher=against_teacher,
        margin=margin,
        non_inferior=is_non_inferior(against_teacher, margin) if against_teacher else None,
        rows_needed=needed,
        hybrid=cut.read(spec, answers[STUDENT], right) if has_teacher else None,
    )


@dataclass(frozen=True, slots=True)
class _Cut:
    """What the hybrid's cut is fixed on."""

    examples: list[Example]
    answers: list[Prediction]
    weights: list[float] | None
    hand_over: float | None

    def read(
        self, spec: AnswerSpec, found: list[Prediction], right: dict[str, tuple[bool, ...]]
    ) -> hybrid.HybridResult:
        """What it gives on a test set.

        Validation is held against gold if its rows have it, else against the teacher, who is always right there: a
        reason to plan the share instead.
        """
        wanted, _ = references(self.examples)
        student = figures(spec, [p.text for p in self.answers], wanted).right
        teacher = figures(spec, [e.teacher or "" for e in self.examples], wanted).right
        return hybrid.evaluate(
            ([p.confidence for p in self.answers], student, teacher),
            ([p.confidence for p in found], right[STUDENT], right[TEACHER]),
            weights=self.weights,
            hand_over=self.hand_over,
        )


def _held_weights(
    dataset: Dataset, held: Sequence[Example], target: Mapping[str, float] | None
) -> list[float] | None:
    if not target:
        return None
    labels = [class_of(e.completion, dataset.info.answer) or "" for e in held]
    known = {name: share for name, share in target.items() if name in labels}
    if set(labels) - set(target) or not known:
        return None  # the mix says nothing about these rows
    return row_weights(labels, known)


def _savings(test: TestReport, price: Price) -> dict[str, float]:
    if test.hybrid is None:
        return {}
    return {
        "teacher_calls_saved_share": 1 - test.hybrid.handed_over,
        "teacher_usd_per_million_prompt_tokens": price.input,
        "teacher_usd_per_million_completion_tokens": price.output,
    }


def _sentences(report: Evaluation) -> list[str]:
    said = []
    for test in report.tests:
        student = test.line(STUDENT).figures
        where = f"{test.split}, {test.rows} rows, against {test.reference}"
        if test.student_against_rival:
            gap = test.student_against_rival
            word = "beats" if gap.low > 0 else "loses to" if gap.high < 0 else "is level with"
            said.append(
                f"{where}: the student {word} {RIVAL}: {100 * gap.difference:+.1f} points "
                f"[{100 * gap.low:+.1f}, {100 * gap.high:+.1f}], McNemar p = {gap.p_value:.2g}."
            )
        if test.student_against_teacher:
            gap = test.student_against_teacher
            verdict = "not inferior" if test.non_inferior else "not shown to be non-inferior"
            said.append(
                f"{where}: against the teacher {100 * gap.difference:+.1f} points [{100 * gap.low:+.1f}, "
                f"{100 * gap.high:+.1f}]: {verdict} at a margin of {100 * test.margin:.0f} points "
                f"(about {test.rows_needed} rows would be needed to show it if they were equal)."
            )
        if test.hybrid:
            h = test.hybrid
            said.append(
                f"{where}: student and teacher together {100 * h.accuracy.share:.1f} "
                f"[{100 * h.accuracy.low:.1f}-{100 * h.accuracy.high:.1f}] at {100 * h.handed_over:.0f} % handed over; "
                f"teacher alone {100 * h.teacher_alone.share:.1f}, student alone {100 * h.student_alone.share:.1f}."
            )
        if student.unparseable:
            said.append(f"{where}: {student.unparseable} of the student's answers do not parse.")
    return said


def write(report: Evaluation, dataset: Dataset, folder: Path) -> dict[str, Path]:
    """`evaluation.json` and its pictures in `folder`; names of what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"evaluation": folder / "evaluation.json"}
    files["evaluation"].write_bytes(
        msgspec.json.format(msgspec.json.encode(_plain(report)), indent=2)
    )
    for test in report.tests:
        for name, found in test.line(STUDENT).figures.fields.items():
            path = folder / f"confusion-{test.split}-{name}.png"
            classes = sorted(
                {*found.confusion, *(a for row in found.confusion.values() for a in row)}
            )
            plots.confusion(found.confusion, classes, f"student, {name}, {test.split}", path)
            files[f"confusion {name} {test.split}"] = path
        if test.hybrid:
            path = folder / f"hybrid-{test.split}.png"
            h = test.hybrid
            plots.hybrid_curve(
                [p.handed_over for p in h.curve],
                [p.accuracy for p in h.curve],
                teacher=h.teacher_alone.share,
                chosen=(h.handed_over, h.accuracy.share, (h.accuracy.low, h.accuracy.high)),
                reference=test.reference,
                title=f"{dataset.info.task}: {test.split}, {test.rows} rows",
                path=path,
            )
            files[f"hybrid {test.split}"] = path
    return files


def _plain(report: Evaluation) -> dict[str, Any]:
    """The report as JSON values, without the per-row vectors."""
    plain = asdict(report)
    for test in plain["tests"]:
        for line in test["lines"]:
            line["figures"].pop("right")
    return plain
