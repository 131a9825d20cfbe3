"""What an evaluation shows, in words, also when the student loses. Pure."""

from dataclasses import replace

from training.eval_bits import BitsReport
from training.eval_calls import CallFigures
from training.eval_judge import JudgeReport
from training.evaluate import RIVAL, STUDENT, Evaluation, TestReport
from training.metrics import Mean, Rate

NAMED_SLICES = 3


def in_words(report: Evaluation) -> Evaluation:
    """The report with its sentences."""
    said = [sentence for test in report.tests for sentence in _of_test(test)]
    if len(report.tests) > 1:
        said += _of_both(*report.tests[:2])
    if report.bits:
        said.append(_of_bits(report.bits))
    for judge in report.judges:
        said += _of_judge(judge)
    return replace(report, sentences=tuple(said))


def percent(rate: Rate | Mean) -> str:
    """A share and its interval, in per cent."""
    share = rate.share if isinstance(rate, Rate) else rate.value
    return f"{100 * share:.1f} [{100 * rate.low:.1f}-{100 * rate.high:.1f}]"


def _of_test(test: TestReport) -> list[str]:
    said = []
    student = test.line(STUDENT)
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
        needed = "no number of" if test.rows_needed is None else f"about {test.rows_needed}"
        said.append(
            f"{where}: against the teacher {100 * gap.difference:+.1f} points [{100 * gap.low:+.1f}, "
            f"{100 * gap.high:+.1f}]: {verdict} at a margin of {100 * test.margin:.0f} points "
            f"({needed} rows would be needed to show it if they were equal)."
        )
    if test.rouge_against_teacher:
        near = test.rouge_against_teacher
        said.append(
            f"{where}: ROUGE-L against the teacher's {100 * near.difference:+.1f} points [{100 * near.low:+.1f}, "
            f"{100 * near.high:+.1f}], permutation p = {near.p_value:.2g}."
        )
    if test.hybrid:
        h = test.hybrid
        said.append(
            f"{where}: student and teacher together {percent(h.accuracy)} at {100 * h.handed_over:.0f} % handed over; "
            f"teacher alone {100 * h.teacher_alone.share:.1f}, student alone {100 * h.student_alone.share:.1f}."
        )
    if student.calls:
        said += _of_calls(student.calls, where)
    if student.figures.unparseable:
        said.append(
            f"{where}: {student.figures.unparseable} of the student's answers do not parse."
        )
    if student.form and student.form.valid and student.form.valid.share < 1:
        said.append(
            f"{where}: {percent(student.form.valid)} % of the student's answers are valid under the schema."
        )
    return said + _of_slices(test, where)


def _of_calls(calls: CallFigures, where: str) -> list[str]:
    said = [
        f"{where}: of {calls.names.rows} rows that want calls {percent(calls.names)} % have the right tools and "
        f"{percent(calls.arguments)} % the right arguments too; {calls.missed.right} make no call."
    ]
    if calls.abstained.rows:
        said.append(
            f"{where}: of {calls.abstained.rows} rows that want none {percent(calls.abstained)} % make none; "
            f"{calls.spurious.right} make one."
        )
    else:
        said.append(f"{where}: no row wants no call, so nothing is known of needless ones.")
    if calls.valid and calls.valid.right < calls.valid.rows:
        said.append(
            f"{where}: {percent(calls.valid)} % of the student's calls are valid under their tools' schemas; "
            f"{calls.unknown_tools} are of tools that the request has not."
        )
    return said


def _of_both(first: TestReport, second: TestReport) -> list[str]:
    """Whether the test sets tell different stories: intervals apart, or another verdict."""
    one, other = (t.line(STUDENT).figures.accuracy for t in (first, second))
    apart = one.low > other.high or other.low > one.high
    if not apart and first.non_inferior == second.non_inferior:
        return []
    return [
        f"the two test sets disagree: {percent(one)} right on {first.split}, {percent(other)} on {second.split}, non-inferior "
        f"{_yes(first.non_inferior)} and {_yes(second.non_inferior)}: traffic's mix hides or makes a difference; read both."
    ]


def _yes(value: bool | None) -> str:
    return "unknown" if value is None else "yes" if value else "no"


def _of_slices(test: TestReport, where: str) -> list[str]:
    tested = [s for s in test.slices if s.has_enough_rows]
    if not tested:
        return []
    small = len(test.slices) - len(tested)
    few = f"; {small} more have too few rows to say" if small else ""
    worse = [s for s in tested if s.is_worse]
    if worse:
        names = ", ".join(
            f"{s.name} ({percent(s.student)}, elsewhere {100 * s.elsewhere.share:.1f})"
            for s in worse[:NAMED_SLICES]
        )
        said = [
            f"{where}: in {len(worse)} of {len(tested)} slices it errs more than elsewhere (Holm p < 0.05): {names}{few}."
        ]
    else:
        said = [
            f"{where}: in none of {len(tested)} slices it is shown to err more than elsewhere{few}."
        ]
    losing = [s.name for s in tested if s.loses_to_teacher]
    if losing:
        said.append(
            f"{where}: slices in which it is shown to be worse than the teacher: {', '.join(losing[:NAMED_SLICES])}."
        )
    return said


def _of_bits(bits: BitsReport) -> str:
    return (
        f"the right answers of {bits.rows} test rows take the student {bits.student.bits_per_byte:.3f} bits a byte and the base "
        f"model {bits.base.bits_per_byte:.3f}: {bits.saved:+.3f} [{bits.saved_low:+.3f}, {bits.saved_high:+.3f}] saved."
    )


def _of_judge(judge: JudgeReport) -> list[str]:
    both = judge.pairwise
    said = [
        f"judge {judge.model}, {judge.rows} rows: the student wins {both.wins}, ties {both.ties}, loses {both.losses} (win rate "
        f"{percent(both.win_rate)}); both orders agree on {percent(both.consistent)} of {both.consistent.rows} pairs.",
        f"judge {judge.model} {'may' if judge.may_gate else 'may not'} gate: {judge.why}.",
    ]
    return said + [f"judge {judge.model}: {warning}." for warning in judge.warnings]
