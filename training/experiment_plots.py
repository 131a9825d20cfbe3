"""Pictures of an experiment: deltas beside the noise floor, accuracy against rows with the fitted law, and the ladder."""

from pathlib import Path

import numpy as np

from training.experiment_report import Ablation, ExperimentReport
from training.ladder import Climb, short
from training.plots import OTHER, STUDENT, TEACHER, figure_of, save_figure
from training.size_law import fit

WORD_COLOURS = {"better": "#15803d", "worse": "#b91c1c"}


def deltas(report: ExperimentReport, path: Path) -> None:
    """Each change's delta to the baseline with its interval; the grey band is what seeds alone do."""
    figure, axes = figure_of(7.2, 1.6 + 0.36 * len(report.deltas))
    if report.noise_floor is not None:
        axes.axvspan(
            -100 * report.noise_floor, 100 * report.noise_floor, color="#e5e7eb",
            label=f"seeds alone, ±{100 * report.noise_floor:.1f}",
        )  # fmt: skip
    for place, delta in enumerate(reversed(report.deltas)):
        gap = delta.gap
        axes.errorbar(
            [100 * gap.difference], [place], fmt="o", capsize=3, color=WORD_COLOURS.get(delta.word, OTHER),
            xerr=[[100 * (gap.difference - gap.low)], [100 * (gap.high - gap.difference)]],
        )  # fmt: skip
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(report.deltas)), [d.change for d in reversed(report.deltas)], fontsize=8)  # fmt: skip
    axes.set(xlabel=f"points of accuracy against the baseline, {report.validation_rows} validation rows")  # fmt: skip
    if report.noise_floor is not None:
        axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def sizes(ablation: Ablation, path: Path) -> None:
    """Error against training rows, both on log scales, each seed a dot; the law as a line where there is one."""
    figure, axes = figure_of(6.4, 4.0)
    rows = [p.rows for p in ablation.points]
    for point in ablation.points:
        errors = [100 * max(1 - a, 1e-4) for a in point.accuracies]
        axes.plot([point.rows] * len(errors), errors, ".", color=OTHER)
    means = [max(1 - float(np.mean(p.accuracies)), 1e-4) for p in ablation.points]
    axes.plot(rows, [100 * m for m in means], "o", color=STUDENT, label="mean of the seeds")
    if ablation.law.identifiable:
        told = [
            i for i, p in enumerate(ablation.points) if max(p.accuracies) > 0
        ]  # as the law has it
        floor, scale, exponent = fit([rows[i] for i in told], [means[i] for i in told])
        along = np.geomspace(rows[0], 5 * rows[-1], 60)
        axes.plot(along, 100 * (floor + scale * along**-exponent), color=STUDENT, lw=1.2,
                  label=f"{100 * floor:.1f} % + {scale:.2g} · rows^-{exponent:.2f}")  # fmt: skip
        for times, at in ((2, ablation.law.at_twice), (5, ablation.law.at_five_times)):
            if at is not None:
                axes.errorbar(
                    [times * rows[-1]], [100 * at.value], fmt="D", color=TEACHER, capsize=3,
                    yerr=[[max(0, 100 * (at.value - at.low))], [max(0, 100 * (at.high - at.value))]],
                    label=f"at {times}× the rows" if times == 2 else None,
                )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlabel="training rows", ylabel="wrong validation answers, %",
        title=f"{ablation.law.verdict} (equal {ablation.budget})",
    )  # fmt: skip
    axes.set_xticks(rows, [f"{n:,}" for n in rows])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    steps = [n for n in (1, 2, 3, 5, 7, *range(10, 101, 10)) if low <= n <= high]
    axes.set_yticks(steps, [f"{n}" for n in steps])
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def ladder(climb: Climb, path: Path) -> None:
    """Exact answers against parameters, each seed a dot; the rung to take is filled, what an answer takes stands beside."""
    figure, axes = figure_of(6.4, 4.0)
    sizes = [rung.parameters / 1e6 for rung in climb.rungs]
    axes.plot(sizes, [100 * r.accuracy.share for r in climb.rungs], color=OTHER, lw=1, ls=":")
    for size, rung in zip(sizes, climb.rungs, strict=True):
        share = rung.accuracy
        axes.plot([size] * len(rung.each), [100 * a for a in rung.each], ".", color=OTHER)
        axes.errorbar(
            [size], [100 * share.share], yerr=[[100 * (share.share - share.low)], [100 * (share.high - share.share)]],
            fmt="o", capsize=4, color=STUDENT if rung.holds else OTHER, ms=8,
            mfc=STUDENT if rung.model == climb.take else "white",
        )  # fmt: skip
        told = short(rung.model)
        if rung.answer_ms is not None:
            told += f"\n{rung.answer_ms:.3g} ms an answer"
        axes.annotate(told, (size, 100 * share.high), xytext=(0, 6), textcoords="offset points",
                      fontsize=8, ha="center")  # fmt: skip
    axes.set(xscale="log", xlabel="parameters of the base model, millions", ylabel="exact validation answers, %")  # fmt: skip
    axes.set_xticks(sizes, [f"{size:.3g}" for size in sizes])
    axes.minorticks_off()
    axes.margins(x=0.2, y=0.2)
    axes.set_title(f"take {short(climb.take or '')}" if climb.is_over else "not decided yet")
    save_figure(figure, path)
