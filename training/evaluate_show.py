"""An evaluation on the terminal: tables of answerers, form, text, slices and judges, then the sentences."""

from typing import Any

from rich.table import Table

from training.commands import out
from training.eval_judge import JudgeReport
from training.eval_slices import SliceFigures
from training.evaluate import STUDENT, Evaluation, TestReport
from training.evaluate_words import percent
from training.metrics import Rate

MOST_SLICES = 10
UNKNOWN = "-"


def show(report: Evaluation, files: dict[str, str]) -> None:
    """The tables, the sentences and where the files are."""
    for test in report.tests:
        out.print(_answerers(report.task, test))
        if any(line.text for line in test.lines):
            out.print(_texts(test))
        if any(line.form and line.form.extraction for line in test.lines):
            out.print(_form(test))
        if test.slices:
            _print_slices(test)
    if report.waits:
        waits = report.waits
        out.print(
            f"one request alone, {waits.rows} rows: p50 {1000 * waits.p50_seconds:.0f} ms, p95 {1000 * waits.p95_seconds:.0f} ms",
            highlight=False,
        )  # fmt: skip
    if report.judges:
        out.print(_judges(report.judges))
    for sentence in report.sentences:
        out.print(f"• {sentence}", highlight=False, markup=False)
    for name, path in files.items():
        out.print(f"{name}: {path}", soft_wrap=True, highlight=False)


def _answerers(task: str, test: TestReport) -> Table:
    fields = list(test.lines[0].figures.fields)
    has_auc = any(line.scores.of_class for line in test.lines)
    columns = ["answerer", "right", "95 % interval", *fields]
    columns += ["balanced"] * (len(fields) == 1) + ["AUC"] * has_auc
    columns += [
        "unparseable",
        "as the teacher",
        "sure when right",
        "ms a row p50/p95",
        "tokens",
        "$/1,000",
    ]
    table = Table(
        *columns, title=f"{task}: {test.split}, {test.rows} rows, against {test.reference}"
    )
    for line in test.lines:
        whole, cost = line.figures.accuracy, line.cost
        row = [
            line.name,
            f"{100 * whole.share:.1f}",
            f"{100 * whole.low:.1f}-{100 * whole.high:.1f}",
        ]
        row += [f"{100 * line.figures.fields[name].accuracy.share:.1f}" for name in fields]
        if len(fields) == 1:
            row.append(f"{100 * line.figures.fields[fields[0]].balanced_accuracy:.1f}")
        if has_auc:
            row.append(f"{line.scores.of_class.value:.3f}" if line.scores.of_class else UNKNOWN)
        row += [
            str(line.figures.unparseable),
            UNKNOWN if line.against_teacher is None else f"{100 * line.against_teacher:.1f}",
            f"{line.scores.of_confidence.value:.2f}" if line.scores.of_confidence else UNKNOWN,
            UNKNOWN if cost.p50_seconds is None or cost.p95_seconds is None
            else f"{1000 * cost.p50_seconds:.1f}/{1000 * cost.p95_seconds:.1f}",
            f"{'~' if cost.tokens_are_estimated else ''}{cost.tokens_out:.1f}",
            UNKNOWN if cost.usd_per_1000 is None else f"{cost.usd_per_1000:.3f}",
        ]  # fmt: skip
        table.add_row(*row)
    return table


def _texts(test: TestReport) -> Table:
    table = Table(
        "answerer", "ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum", "words", "reference's words",
        title=f"{test.split}: how near to the {test.reference} answers, F1 in %",
    )  # fmt: skip
    for line in test.lines:
        if line.text:
            found = line.text
            table.add_row(
                line.name, *(percent(mean) for mean in found.rouge.values()),
                f"{found.words.value:.1f}", f"{found.reference_words.value:.1f}",
            )  # fmt: skip
    return table


def _form(test: TestReport) -> Table:
    form = test.line(STUDENT).form
    assert form is not None
    valid = f", valid under the schema {percent(form.valid)}" if form.valid else ""
    table = Table(
        "field", "precision", "recall", "F1", "fuzzy F1",
        title=f"{test.split}: the student's JSON parses {percent(form.parsed)}{valid}; values found, %",
    )  # fmt: skip
    for name, found in form.extraction.items():
        table.add_row(
            name, percent(found.precision), percent(found.recall), f"{100 * found.f1:.1f}", f"{100 * found.fuzzy_f1:.1f}",
        )  # fmt: skip
    return table


def _print_slices(test: TestReport) -> None:
    tested = [s for s in test.slices if s.has_enough_rows]
    table = Table(
        "slice", "rows", "student on gold", "teacher on gold", "student as teacher", "elsewhere", "worse than elsewhere", "differs from teacher",
        title=f"{test.split}: worst slices (right, %; p-values by Holm over {len(tested)} slices)",
    )  # fmt: skip
    for one in tested[:MOST_SLICES]:
        table.add_row(*_slice_row(one), style="" if one.is_worse or one.loses_to_teacher else "dim")
    if tested:
        out.print(table)
    small = [f"{s.name} ({s.rows})" for s in test.slices if not s.has_enough_rows]
    more = max(0, len(tested) - MOST_SLICES)
    if more:
        out.print(f"{more} more slices are in evaluation.json", highlight=False, style="dim")
    if small:
        shown = ", ".join(small[:MOST_SLICES]) + (", …" if len(small) > MOST_SLICES else "")
        out.print(f"too few rows to test: {shown}", highlight=False, style="dim", markup=False)


def _slice_row(one: SliceFigures) -> list[str]:
    def known(rate: Rate | None) -> str:
        return UNKNOWN if rate is None else percent(rate)

    def p(value: float | None) -> str:
        return UNKNOWN if value is None else f"p = {value:.2g}"

    return [
        one.name, str(one.rows), known(one.student_gold), known(one.teacher_gold), known(one.student_teacher),
        f"{100 * one.elsewhere.share:.1f}", p(one.p_value), p(one.p_against_teacher),
    ]  # fmt: skip


def _judges(judges: tuple[JudgeReport, ...]) -> Table:
    table = Table("", *(judge.model for judge in judges), title="judge: student against teacher")
    rows: list[tuple[str, Any]] = [
        ("wins, ties, losses", lambda j: f"{j.pairwise.wins}, {j.pairwise.ties}, {j.pairwise.losses}"),
        ("win rate, % (tie = ½)", lambda j: percent(j.pairwise.win_rate)),
        ("win rate at equal length", lambda j: _share(j.length.win_rate)),
        ("both orders agree, %", lambda j: percent(j.pairwise.consistent)),
        ("score of the student", lambda j: _score(j.pointwise.student)),
        ("score of the teacher", lambda j: _score(j.pointwise.teacher)),
        ("score goes with length", lambda j: UNKNOWN if j.length.correlation is None else f"{j.length.correlation:+.2f}"),
        ("people's labels", lambda j: ", ".join(f"{n} {source}" for source, n in j.human_labels.items()) or "none"),
        ("agrees with people, %", lambda j: percent(j.agreement.agreed) if j.agreement else UNKNOWN),
        ("kappa with people", lambda j: f"{j.agreement.kappa:.2f}" if j.agreement and j.agreement.kappa is not None else UNKNOWN),
        ("kappa with the first judge", lambda j: UNKNOWN if j.kappa_with_first is None else f"{j.kappa_with_first:.2f}"),
        ("may gate", lambda j: "yes" if j.may_gate else "no"),
        ("its replies cost, $", lambda j: f"{j.usd:.4f}"),
    ]  # fmt: skip
    for name, read in rows:
        table.add_row(name, *(read(judge) for judge in judges))
    return table


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{100 * value:.1f}"


def _score(mean: Any) -> str:
    return f"{mean.value:.2f} [{mean.low:.2f}-{mean.high:.2f}]"
