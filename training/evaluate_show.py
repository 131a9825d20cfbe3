"""An evaluation on the terminal: tables of answerers, form, text, slices and judges, then the sentences."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from training.commands import out
from training.eval_judge import JudgeReport
from training.eval_learned import Learned
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
        out.print(_costs(test))
        if any(line.text for line in test.lines):
            out.print(_texts(test, report.learned.get(test.split)))
        if any(line.form and line.form.extraction for line in test.lines):
            out.print(_form(test))
        if any(line.calls for line in test.lines):
            out.print(_calls(test))
            out.print(_call_arguments(test))
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
    columns = ["answerer", "right", "95 % interval", *fields, *["balanced"] * (len(fields) == 1)]
    table = Table(
        *columns, "unparseable", "as the teacher",
        title=f"{task}: {test.split}, {test.rows} rows, against {test.reference}",
    )  # fmt: skip
    for line in test.lines:
        found = line.figures
        whole = found.accuracy
        row = [
            line.name,
            f"{100 * whole.share:.1f}",
            f"{100 * whole.low:.1f}-{100 * whole.high:.1f}",
        ]
        row += [f"{100 * found.fields[name].accuracy.share:.1f}" for name in fields]
        if len(fields) == 1:
            row.append(f"{100 * found.fields[fields[0]].balanced_accuracy:.1f}")
        agreed = UNKNOWN if line.against_teacher is None else f"{100 * line.against_teacher:.1f}"
        table.add_row(*row, str(found.unparseable), agreed)
    return table


def _costs(test: TestReport) -> Table:
    has_auc = any(line.scores.of_class for line in test.lines)
    table = Table(
        "answerer", *[f"AUC of {escape(str(test.line(STUDENT).scores.class_name))}"] * has_auc, "AUC of being right",
        "ms a row p50/p95", "tokens out", "$ per 1,000",
        title=f"{test.split}: what confidence and answers are worth, and what they take",
    )  # fmt: skip
    for line in test.lines:
        cost, areas = line.cost, [line.scores.of_confidence]
        if has_auc:
            areas.insert(0, line.scores.of_class)
        timed = UNKNOWN
        if cost.p50_seconds is not None and cost.p95_seconds is not None:
            timed = f"{1000 * cost.p50_seconds:.1f}/{1000 * cost.p95_seconds:.1f}"
        table.add_row(
            line.name, *(UNKNOWN if area is None else f"{area.value:.3f}" for area in areas), timed,
            f"{'~' if cost.tokens_are_estimated else ''}{cost.tokens_out:.1f}",
            UNKNOWN if cost.usd_per_1000 is None else f"{cost.usd_per_1000:.3f}",
        )  # fmt: skip
    return table


def _texts(test: TestReport, learned: Learned | None) -> Table:
    names = [learned.name] if learned else []
    table = Table(
        "answerer", "R-1", "R-2", "R-L", "R-Lsum", "words", *names,
        title=f"{test.split}: ROUGE against the {test.reference} answers, F1 in %, and words to theirs",
    )  # fmt: skip
    for line in test.lines:
        if line.text:
            found = line.text
            words = f"{found.words.value:.0f}/{found.reference_words.value:.0f}"
            more = [_score(learned.means[line.name])] if learned else []
            table.add_row(line.name, *(percent(m) for m in found.rouge.values()), words, *more)
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


def _calls(test: TestReport) -> Table:
    table = Table(
        "answerer", "right tool", "right arguments", "argument P", "argument R", "valid", "no call, right", "needless", "missed",
        "unparseable", title=f"{test.split}: tool calls against the {test.reference} answers, %",
    )  # fmt: skip
    for line in test.lines:
        if line.calls:
            c, each = line.calls, line.calls.all_arguments
            found = (
                c.names, c.arguments, each.precision, each.recall, c.valid, c.abstained, c.spurious, c.missed, c.unparseable,
            )  # fmt: skip
            table.add_row(line.name, *(percent(r) if r and r.rows else UNKNOWN for r in found))
    return table


def _call_arguments(test: TestReport) -> Table:
    calls = test.line(STUDENT).calls
    assert calls is not None
    table = Table(
        "argument", "precision", "recall", "F1", "normalised F1",
        title=f"{test.split}: the student's arguments, %",
    )  # fmt: skip
    for name, found in {"all": calls.all_arguments, **calls.by_argument}.items():
        table.add_row(
            escape(name), percent(found.precision), percent(found.recall), f"{100 * found.f1:.1f}",
            f"{100 * found.normalised_f1:.1f}",
        )  # fmt: skip
    return table


def _print_slices(test: TestReport) -> None:
    tested = [s for s in test.slices if s.has_enough_rows]
    table = Table(
        "slice", "rows", "student", "teacher", "agree", "rest", "p: rest", "p: teacher",
        title=f"{test.split}: worst slices, % right on gold; p by Holm over {len(tested)}: errs more than in the "
        "rest, differs from the teacher",
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
        out.print(
            f"too few rows in or beside them to test: {shown}",
            highlight=False,
            style="dim",
            markup=False,
        )


def _slice_row(one: SliceFigures) -> list[str]:
    def known(rate: Rate | None) -> str:
        if rate is None:
            return UNKNOWN
        return f"{100 * rate.share:.0f} [{100 * rate.low:.0f}-{100 * rate.high:.0f}]"

    def p(value: float | None) -> str:
        return UNKNOWN if value is None else f"{value:.2g}"

    return [
        escape(one.name), str(one.rows), known(one.student_gold), known(one.teacher_gold), known(one.student_teacher),
        f"{100 * one.elsewhere.share:.0f}", p(one.p_value), p(one.p_against_teacher),
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
