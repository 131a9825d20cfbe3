"""Pictures of training: the loss curve, confusion, and the hybrid curve. Drawn by matplotlib without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from training import run_log

TEACHER, STUDENT, OTHER = "#b45309", "#1d4ed8", "#6b7280"


def figure_of(width: float, height: float) -> tuple[Any, Any]:
    """A figure in the house manner, inches, and its axes."""
    figure, axes = plt.subplots(figsize=(width, height), dpi=130, layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def save_figure(figure: Any, path: Path) -> None:
    """Write and close."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def loss_curve(log: Path, path: Path) -> None:
    """Training loss a step (smoothed), validation loss and exact answers an epoch, against rows seen."""
    known = run_log.lines(log)
    steps = [line for line in known if "loss" in line]
    epochs = [line for line in known if "validation_loss" in line]
    figure, axes = figure_of(6.4, 3.6)
    smooth: list[float] = []
    for line in steps:
        smooth.append(0.8 * smooth[-1] + 0.2 * line["loss"] if smooth else line["loss"])
    axes.plot([s["rows"] for s in steps], smooth, color=OTHER, lw=1.2, label="training (smoothed)")
    axes.plot(
        [e["rows"] for e in epochs],
        [e["validation_loss"] for e in epochs],
        "o-",
        color=STUDENT,
        label="validation",
    )
    axes.set(yscale="log", xlabel="rows seen", ylabel="cross-entropy, nats a token")
    share = axes.twinx()
    share.plot(
        [e["rows"] for e in epochs], [100 * e["exact_share"] for e in epochs],
        "s:", color=TEACHER, ms=4, label="exact answers (right)",
    )  # fmt: skip
    share.set(ylim=(0, 100), ylabel="exact validation answers, %")
    share.spines["top"].set_visible(False)
    lines = [*axes.get_lines(), *share.get_lines()]
    axes.legend(lines, [line.get_label() for line in lines], frameon=False, fontsize=8)
    save_figure(figure, path)


def confusion(
    table: Mapping[str, Mapping[str, int]], classes: Sequence[str], title: str, path: Path
) -> None:
    """Counts of answer (column) against reference (row)."""
    counts = [[table.get(row, {}).get(column, 0) for column in classes] for row in classes]
    size = 1.6 + 0.55 * len(classes)
    figure, axes = plt.subplots(figsize=(size + 1, size), dpi=130, layout="constrained")
    axes.imshow(counts, cmap="Blues")
    most = max((max(row) for row in counts), default=0)
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            if count:
                axes.text(
                    j, i, str(count), ha="center", va="center", fontsize=8,
                    color="white" if count > most / 2 else "black",
                )  # fmt: skip
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set(xlabel="answer", ylabel="reference", title=title)
    save_figure(figure, path)


def hybrid_curve(
    shares: Sequence[float],
    accuracies: Sequence[float],
    *,
    teacher: float | None,
    chosen: tuple[float, float, tuple[float, float]] | None,
    reference: str,
    title: str,
    path: Path,
) -> None:
    """Accuracy of student and teacher together against the share handed to the teacher.

    Args:
        teacher: the teacher alone, drawn as a line.
        chosen: share, accuracy and interval of the cut fixed on validation.
        reference: what accuracy is measured against, `gold` or `teacher`.
    """
    figure, axes = figure_of(6.4, 4.0)
    axes.plot(
        [100 * s for s in shares],
        [100 * a for a in accuracies],
        color=STUDENT,
        lw=2,
        label="student + teacher",
    )
    if teacher is not None:
        axes.axhline(
            100 * teacher,
            color=TEACHER,
            ls="--",
            lw=1.4,
            label=f"teacher alone {100 * teacher:.1f}",
        )
    if chosen is not None:
        share, accuracy, (low, high) = chosen
        axes.errorbar(
            [100 * share], [100 * accuracy], yerr=[[max(0.0, 100 * (accuracy - low))], [max(0.0, 100 * (high - accuracy))]],
            fmt="o", color="black", capsize=4, zorder=5,
            label=f"cut fixed on validation: {100 * accuracy:.1f} at {100 * share:.0f} % handed over",
        )  # fmt: skip
    axes.set(
        xlabel="handed to the teacher, % of requests (least confident first)",
        ylabel=f"right against {reference}, %",
        title=title,
    )
    axes.legend(frameon=False, loc="lower right")
    save_figure(figure, path)
