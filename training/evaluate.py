"""A run's report card: the student beside its baselines and the teacher, on frozen test sets, with intervals.

Against gold where the rows have it, else against the teacher, and the report says which. What the figures say in words is in
`evaluate_words`, files and pictures in `evaluate_files`. Knows no model: bits per byte and a judge's verdicts are laid on the report.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from router.answer_spec import AnswerSpec
from router.policy import Price
from training import hybrid
from training.baselines import FITS, Baseline, Recorded
from training.dataset import Dataset, Example, Split, class_of
from training.errors import DataError
from training.eval_bits import BitsReport
from training.eval_calls import CallFigures, call_figures
from training.eval_cost import Cost, Prices, Waits, cost_of
from training.eval_form import FormFigures, form_figures
from training.eval_judge import JudgeReport
from training.eval_learned import Learned
from training.eval_scores import Scores, scores
from training.eval_slices import SliceFigures, slice_figures
from training.eval_text import TextFigures, rouge, text_figures
from training.metrics import Figures, figures
from training.predict import Prediction, Predictor, Progress
from training.priors import row_weights
from training.statistics import Paired, is_non_inferior, paired, rows_needed
from training.study_figures import Gap, seeds_gap

STUDENT, TEACHER, RIVAL = "student", "teacher", "TF-IDF + logistic regression"


@dataclass(frozen=True, slots=True)
class Line:
    """One answerer on one test set."""

    name: str
    figures: Figures
    against_teacher: float | None
    """Share of rows on which it says what the teacher says."""
    seconds_per_row: float
    cost: Cost
    scores: Scores
    form: FormFigures | None
    """None for free text and tool calls."""
    text: TextFigures | None
    """ROUGE, for free text only."""
    calls: CallFigures | None = None
    """For tool calls only."""
    predictions: tuple[Prediction, ...] = ()
    """One a row, in order."""
    rouge: tuple[dict[str, float], ...] = ()
    """Of each row, for free text only."""


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
    rouge_against_teacher: Gap | None = None
    """The student's ROUGE-L less the teacher's, row by row, where both are held against gold."""
    slices: tuple[SliceFigures, ...] = ()
    examples: tuple[Example, ...] = ()
    references: tuple[str, ...] = ()

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
    waits: Waits | None = None
    bits: BitsReport | None = None
    judges: tuple[JudgeReport, ...] = ()
    learned: dict[str, Learned] = field(default_factory=dict)
    """Test set to a learned metric of it."""


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
    student_price: Price | None = None,
    target_mix: Mapping[str, float] | None = None,
    hand_over: float | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score student, baselines and teacher on the dataset's test sets.

    Args:
        others: more answerers, such as the base model without an adapter.
        margin: how much worse than the teacher still counts as not inferior (a share).
        price: the teacher's, for its answers and for what the hybrid saves.
        student_price: of the backend that serves the student.
        target_mix: the class mix that the student was trained for; validation rows are weighted to it.
        hand_over: share of validation that the hybrid's cut is planned to hand to the teacher; None lets its accuracy
            there decide.

    Raises:
        DataError: the dataset has no test rows, or no validation rows to fix the hybrid's cut on.
    """
    spec = _spec_of(dataset)
    learned = [*dataset.of("train"), *dataset.of("validation")]
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
            prices = Prices(price, student_price)
            tests.append(_test(split, rows, answerers, spec, cut, margin, prices, known, progress))
    saved = _savings(tests[0], price) if price else {}
    return Evaluation(dataset.info.task, dataset.info.digest, tuple(tests), savings=saved)


def _spec_of(dataset: Dataset) -> AnswerSpec:
    """The answer spec of a dataset that can be evaluated.

    Raises:
        DataError: it cannot.
    """
    spec = AnswerSpec.model_validate(dataset.info.answer)
    if not dataset.of("test"):
        raise DataError(f"{dataset.path}: no test rows; build with a test share or --test-file")
    if not dataset.of("validation"):
        raise DataError(f"{dataset.path}: no validation rows; build with a validation share")
    return spec


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
    prices: Prices,
    known: dict[tuple[str, str], Prediction],
    progress: Progress | None,
) -> TestReport:
    wanted, reference = references(rows)
    by_name = {STUDENT: prices.student, TEACHER: prices.teacher}
    lines = [
        _line(spec, a.name, rows, wanted, _predict(a, rows, known, progress), by_name.get(a.name))
        for a in answerers
    ]
    right = {line.name: line.figures.right for line in lines}
    has_teacher = all(e.teacher for e in rows) and reference == "gold"
    against_teacher = paired(right[STUDENT], right[TEACHER]) if has_teacher else None
    needed = None
    if against_teacher:
        differ = (against_teacher.only_first + against_teacher.only_second) / len(rows)
        needed = rows_needed(margin, max(differ, 1 / len(rows)))
    answers = next(line.predictions for line in lines if line.name == STUDENT)
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
        hybrid=cut.read(spec, answers, right) if has_teacher else None,
        rouge_against_teacher=_rouge_gap(lines) if has_teacher else None,
        slices=slice_figures(spec, rows, answers),
        examples=tuple(rows),
        references=tuple(wanted),
    )


def _rouge_gap(lines: Sequence[Line]) -> Gap | None:
    student, teacher = (
        np.array([row["rougeL"] for line in lines if line.name == name for row in line.rouge])
        for name in (STUDENT, TEACHER)
    )
    return seeds_gap([student], [teacher]) if len(student) else None


def _line(
    spec: AnswerSpec,
    name: str,
    rows: Sequence[Example],
    wanted: Sequence[str],
    found: Sequence[Prediction],
    price: Price | None,
) -> Line:
    """One answerer's figures against `wanted`, and against the teacher where it answered."""
    texts = [p.text for p in found]
    with_teacher = [(p, e.teacher) for p, e in zip(texts, rows, strict=True) if e.teacher]
    agreement = None
    if with_teacher:
        said, teacher = zip(*with_teacher, strict=True)
        agreement = figures(spec, said, teacher).accuracy.share
    main = figures(spec, texts, wanted)
    near = [rouge(a, r) for a, r in zip(texts, wanted, strict=True)] if spec.kind == "text" else []
    return Line(
        name=name,
        figures=main,
        against_teacher=agreement,
        seconds_per_row=sum(p.latency_seconds for p in found) / len(found),
        cost=cost_of(rows, found, price),
        scores=scores(spec, found, wanted, main.right),
        form=form_figures(spec, texts, wanted),
        text=text_figures(texts, wanted, near) if near else None,
        calls=call_figures(spec, texts, wanted, [e.tools for e in rows])
        if spec.kind == "tool_call"
        else None,
        predictions=tuple(found),
        rouge=tuple(near),
    )


@dataclass(frozen=True, slots=True)
class _Cut:
    """What the hybrid's cut is fixed on."""

    examples: list[Example]
    answers: list[Prediction]
    weights: list[float] | None
    hand_over: float | None

    def read(
        self, spec: AnswerSpec, found: Sequence[Prediction], right: dict[str, tuple[bool, ...]]
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
    saved = {
        "teacher_calls_saved_share": 1 - test.hybrid.handed_over,
        "teacher_usd_per_million_prompt_tokens": price.input,
        "teacher_usd_per_million_completion_tokens": price.output,
    }
    teacher, student = test.line(TEACHER).cost.usd_per_1000, test.line(STUDENT).cost.usd_per_1000
    if teacher is not None:
        saved["teacher_usd_per_1000"] = teacher
        if student is not None:  # it answers every request, also those that are handed over then
            saved["hybrid_usd_per_1000"] = student + test.hybrid.handed_over * teacher
    return saved
