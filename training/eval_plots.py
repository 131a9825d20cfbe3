"""Pictures of an evaluation: slices, the ROC."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.eval_slices import SliceFigures
from training.metrics import Rate
from training.plots import OTHER, STUDENT, TEACHER, figure_of, save_figure

if TYPE_CHECKING:
    from training.evaluate import TestReport

MOST_SLICES = 20
DRAWN_CURVES = {"student": STUDENT, "TF-IDF + logistic regression": OTHER}


def slices(test: "TestReport", title: str, path: Path) -> None:
    """Student and teacher against gold (the student against the teacher without gold), worst slices at the top."""
    shown = [s for s in test.slices if s.has_enough_rows][:MOST_SLICES] or test.slices[:MOST_SLICES]
    has_gold = any(s.student_gold for s in shown)
    figure, axes = figure_of(7.4, 1.2 + 0.34 * len(shown))
    if has_gold:
        _points(
            axes, shown, [s.student_gold for s in shown], -0.14, STUDENT, "student, against gold"
        )
        _points(
            axes, shown, [s.teacher_gold for s in shown], 0.14, TEACHER, "teacher, against gold"
        )
    else:
        _points(axes, shown, [s.student_teacher for s in shown], 0, STUDENT, "student, against the teacher")  # fmt: skip
    names = [f"{s.name} ({s.rows}){' *' * s.is_worse}{' †' * s.loses_to_teacher}" for s in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set(title=title, ylim=(len(shown) - 0.4, -0.6))
    axes.set_xlabel(
        "right, %, and 95 % Wilson interval; * worse than elsewhere, † worse than the teacher (Holm p < 0.05)",
        fontsize=8, x=0.3,
    )  # fmt: skip
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=2)
    save_figure(figure, path)


def _points(
    axes: object, shown: Sequence[SliceFigures], rates: Sequence[Rate | None], shift: float, color: str, label: str
) -> None:  # fmt: skip
    known = [(place + shift, rate) for place, rate in enumerate(rates) if rate is not None]
    if not known:
        return
    axes.errorbar(  # type: ignore[attr-defined]
        [100 * r.share for _, r in known], [y for y, _ in known],
        xerr=[[max(0.0, 100 * (r.share - r.low)) for _, r in known], [max(0.0, 100 * (r.high - r.share)) for _, r in known]],
        fmt="o", ms=4, capsize=2, lw=1.2, color=color, label=label,
    )  # fmt: skip


def roc(test: "TestReport", title: str, path: Path) -> None:
    """The ROC of two classes, of the student and its rival."""
    figure, axes = figure_of(4.6, 4.4)
    axes.plot([0, 1], [0, 1], color=OTHER, lw=0.8, ls=":")
    name = None
    for line in test.lines:
        if line.scores.curve and line.name in DRAWN_CURVES and line.scores.of_class:
            area, name = line.scores.of_class, line.scores.class_name
            axes.step(
                [x for x, _ in line.scores.curve], [y for _, y in line.scores.curve], where="post",
                color=DRAWN_CURVES[line.name], label=f"{line.name}: {area.value:.3f} [{area.low:.3f}-{area.high:.3f}]",
            )  # fmt: skip
    axes.set(xlabel=f"others taken for {name}", ylabel=f"{name} found", title=title)
    axes.legend(frameon=False, fontsize=8, loc="lower right", title="area under the curve")
    save_figure(figure, path)
