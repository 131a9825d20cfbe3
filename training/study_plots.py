"""The study's pictures: accuracy against the share handed over, and accuracy an arm. Drawn without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.plots import OTHER, STUDENT, TEACHER, figure_of, save_figure

ARM_COLOURS = {
    "A": "#93c5fd", "B": "#a78bfa", "C": "#5eead4", "control": "#9ca3af", "D": "#f0abfc", "E": STUDENT,
    "E-agreed": "#1e3a8a", "E-corrected": "#0f766e",
}  # fmt: skip


def hand_over_curves(
    runs: Sequence[dict[str, Any]], teacher: float, which: str, path: Path
) -> None:
    """Accuracy on test-balanced of student and teacher together, a curve an arm (mean of its seeds).

    Args:
        runs: rows of the report with their whole cascades.
        teacher: GPT-4's accuracy, drawn as a line.
        which: whose confidence decides.
    """
    figure, axes = figure_of(7.2, 4.4)
    shares = np.linspace(0, 1, 101)
    for arm in dict.fromkeys(run["arm"] for run in runs):
        mine = [run["cascade"][which] for run in runs if run["arm"] == arm]
        tables = [np.asarray(c.curve) for c in mine]
        curves = [np.interp(shares, table[:, 0], table[:, 1]) for table in tables]
        mean = 100 * np.mean(curves, axis=0)
        named = f"arm {arm}, {len(mine)} seed{'s' if len(mine) > 1 else ''}"
        axes.plot(100 * shares, mean, color=ARM_COLOURS[arm], lw=2, label=named)
        handed = 100 * np.mean([c.handed_over for c in mine])
        right = 100 * np.mean([c.accuracy.share for c in mine])
        axes.plot([handed], [right], "o", color=ARM_COLOURS[arm], mec="black", zorder=5)
    axes.axhline(
        100 * teacher, color=TEACHER, ls="--", lw=1.4, label=f"GPT-4 alone {100 * teacher:.1f}"
    )
    axes.plot([], [], "o", color="white", mec="black", label="cut fixed on validation rows")
    axes.set(
        xlabel="handed to GPT-4, % of requests (least confident first)",
        ylabel="right against people's labels, %",
        title="Toxic comments, test-balanced: SmolLM2-135M student and GPT-4 together",
    )
    axes.legend(frameon=False, loc="upper right")  # all curves end low on the right
    save_figure(figure, path)


def arms(
    summaries: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]], playbook: dict[str, float | None],
    teacher: float, path: Path,
) -> None:  # fmt: skip
    """Accuracy an arm on test-balanced: mean and interval of the student, its seeds, TF-IDF, the playbook's 7B student."""
    figure, axes = figure_of(7.2, 4.0)
    for place, line in enumerate(summaries):
        low, high = line["interval"]
        mean = line["mean"]
        axes.errorbar(
            [place], [100 * mean], yerr=[[max(0.0, 100 * (mean - low))], [max(0.0, 100 * (high - mean))]], fmt="o", capsize=4,
            color=STUDENT, label="student 135M (mean, 95 % interval)" if not place else None,
        )  # fmt: skip
        seeds = [100 * r["accuracy"] for r in runs if r["arm"] == line["arm"]]
        axes.plot([place + 0.12] * len(seeds), seeds, ".", color=STUDENT, alpha=0.6, label="its seeds" if not place else None)  # fmt: skip
        axes.plot([place - 0.12], [100 * line["rival"]], "s", color=OTHER, label="TF-IDF" if not place else None)  # fmt: skip
        said = playbook.get(line["arm"])
        if said is not None:
            axes.plot([place], [said], "x", color="black", label="playbook's 7B student" if not place else None)  # fmt: skip
    axes.axhline(100 * teacher, color=TEACHER, ls="--", lw=1.4, label=f"GPT-4 {100 * teacher:.1f}")
    axes.set_xticks(range(len(summaries)), [line["arm"] for line in summaries])
    axes.set(xlabel="training set", ylabel="right on test-balanced, %")
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    save_figure(figure, path)
