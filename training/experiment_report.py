"""What an experiment's runs show: deltas to the baseline with intervals, the noise floor, the leaderboard, the size law. Pure.

A change counts only when both hold: the paired interval of its delta is off 0, and the delta is beyond what seeds
alone move the baseline by.
"""

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from training import size_law
from training.experiment_run import RunFigures
from training.ladder import Climb
from training.metrics import Rate, rate
from training.study_figures import Gap, seeds_gap

BASELINE = "baseline"
Word = Literal["better", "worse", "within the noise", "noise unknown"]


@dataclass(frozen=True, slots=True)
class Delta:
    """One change against the baseline, over all its seeds."""

    change: str
    seeds: int
    accuracy: Rate
    """The mean of the seeds' hits with its interval over rows."""
    gap: Gap
    """Accuracy less the baseline's, as shares."""
    loss_delta: float
    speed: float
    """Rows a second, as a multiple of the baseline's."""
    trained_parameters: int
    word: Word


@dataclass(frozen=True, slots=True)
class SizePoint:
    """One size of the ablation."""

    rows: int
    share: float
    accuracies: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Ablation:
    """The ablation under one budget."""

    budget: str
    points: tuple[SizePoint, ...]
    law: size_law.Law
    usd_for_a_point: float | None
    """Labels of the rows to add, and one more training on all of them; None when no price or no law is known."""


@dataclass(frozen=True, slots=True)
class ExperimentReport:
    """Everything that the finished runs allow."""

    name: str
    done: int
    planned: int
    validation_rows: int
    baseline: Rate | None
    baseline_seeds: int
    noise_floor: float | None
    """A difference of two means of that many seeds goes beyond it in 5 % of cases by seeds alone; None with one seed."""
    deltas: tuple[Delta, ...]
    ablations: tuple[Ablation, ...]
    ladder: Climb | None
    sentences: tuple[str, ...]


def noise_floor(accuracies: Sequence[float], seeds: int) -> float | None:
    """How far two means of `seeds` runs lie apart in 95 % of cases when nothing but the seed differs (Student's t)."""
    if len(accuracies) < 2:
        return None
    spread = statistics.stdev(accuracies)
    return float(stats.t.ppf(0.975, len(accuracies) - 1) * spread * math.sqrt(2 / seeds))


def report(
    name: str,
    runs: Sequence[RunFigures],
    planned: int,
    *,
    worth: float = size_law.WORTH,
    usd_per_row: float | None = None,
    usd_per_hour: float | None = None,
    whole_is_baseline: bool = False,
    climb: Climb | None = None,
) -> ExperimentReport:
    """Compare each change with the baseline; fit the size law of each budget.

    Args:
        worth: gain (a share) from doubling the rows that is worth having.
        whole_is_baseline: the baseline's runs are the ablations' runs on all rows.
        climb: the ladder's rungs, judged.
    """
    groups: dict[str, list[RunFigures]] = defaultdict(list)
    for run in runs:
        if run.budget is None and not run.is_rung:
            groups[run.change].append(run)
    base = sorted(groups.pop("", []), key=lambda r: r.seed)
    floor = noise_floor([r.accuracy for r in base], len(base)) if base else None
    deltas = [_delta(change, group, base) for change, group in groups.items()] if base else []
    whole = base if whole_is_baseline else []
    ablations = _ablations(runs, whole, worth, usd_per_row, usd_per_hour)
    ordered = tuple(sorted(deltas, key=lambda d: -d.gap.difference))
    return ExperimentReport(
        name=name,
        done=len(runs),
        planned=planned,
        validation_rows=len(base[0].right) if base else 0,
        baseline=_mean_rate(base) if base else None,
        baseline_seeds=len(base),
        noise_floor=floor,
        deltas=ordered,
        ablations=ablations,
        ladder=climb,
        sentences=(*_sentences(ordered, floor, ablations), *(climb.sentences if climb else ())),
    )


def _vectors(runs: Sequence[RunFigures], ids: Sequence[str]) -> list[list[bool]]:
    return [[run.right[i] for i in ids] for run in runs]


def _mean_rate(runs: Sequence[RunFigures]) -> Rate:
    rows = len(runs[0].right)
    return rate(round(statistics.fmean(r.accuracy for r in runs) * rows), rows)


def _delta(change: str, group: Sequence[RunFigures], base: Sequence[RunFigures]) -> Delta:
    ids = sorted(base[0].right)
    seeds = {r.seed for r in group} & {r.seed for r in base}
    mine = [r for r in sorted(group, key=lambda r: r.seed) if r.seed in seeds]
    theirs = [r for r in base if r.seed in seeds]
    gap = seeds_gap(_vectors(mine, ids), _vectors(theirs, ids))
    floor = noise_floor([r.accuracy for r in base], len(mine))
    word: Word = "within the noise"
    if floor is None:
        word = "noise unknown"
    elif abs(gap.difference) > floor and (gap.low > 0 or gap.high < 0):
        word = "better" if gap.difference > 0 else "worse"
    return Delta(
        change=change,
        seeds=len(mine),
        accuracy=_mean_rate(mine),
        gap=gap,
        loss_delta=statistics.fmean(r.validation_loss for r in mine)
        - statistics.fmean(r.validation_loss for r in theirs),
        speed=statistics.fmean(r.rows_per_second for r in mine)
        / max(1e-9, statistics.fmean(r.rows_per_second for r in theirs)),
        trained_parameters=mine[0].trained_parameters,
        word=word,
    )


def _next_point(
    points: Sequence[SizePoint], law: size_law.Law, seconds: float, usd_per_row: float | None, usd_per_hour: float | None
) -> float | None:  # fmt: skip
    """Dollars of one point more: the labels, and training once on the larger set, whose time grows with its rows."""
    if law.rows_for_a_point is None or (usd_per_row is None and usd_per_hour is None):
        return None
    rows = points[-1].rows
    training = seconds * (rows + law.rows_for_a_point) / rows / 3600
    return (usd_per_row or 0) * law.rows_for_a_point + (usd_per_hour or 0) * training


def _ablations(
    runs: Sequence[RunFigures],
    whole: Sequence[RunFigures],
    worth: float,
    usd_per_row: float | None,
    usd_per_hour: float | None,
) -> tuple[Ablation, ...]:
    made = []
    for budget in dict.fromkeys(run.budget for run in runs if run.budget):
        sizes: dict[float, list[RunFigures]] = defaultdict(list)
        for run in runs:
            if run.budget == budget:
                sizes[run.share].append(run)
        if whole:
            sizes.setdefault(1.0, list(whole))
        points = tuple(
            SizePoint(part[0].rows, share, tuple(r.accuracy for r in part))
            for share, part in sorted(sizes.items())
        )
        found = size_law.law({p.rows: [1 - a for a in p.accuracies] for p in points}, worth=worth)
        seconds = statistics.fmean(run.seconds for run in sizes[max(sizes)])
        cost = _next_point(points, found, seconds, usd_per_row, usd_per_hour)
        made.append(Ablation(budget, points, found, cost))
    return tuple(made)


def _sentences(
    deltas: Sequence[Delta], floor: float | None, ablations: Sequence[Ablation]
) -> list[str]:
    said = []
    if floor is not None:
        said.append(f"Noise floor: seeds alone move a mean by up to {100 * floor:.1f} points.")
    for delta in deltas:
        gap = delta.gap
        said.append(
            f"{delta.change}: {delta.word}, {100 * gap.difference:+.1f} points [{100 * gap.low:+.1f}, "
            f"{100 * gap.high:+.1f}], p = {gap.p_value:.2g}, {delta.speed:.2f} times the speed."
        )
    for ablation in ablations:
        said.append(f"Rows (equal {ablation.budget}): {ablation.law.decision}")
        far = ablation.law.at_five_times
        if far is not None:
            said.append(
                f"Rows (equal {ablation.budget}): at five times the rows {100 * (1 - far.value):.1f} % would be right "
                f"[{100 * (1 - far.high):.1f}, {100 * (1 - far.low):.1f}]."
            )
        if ablation.usd_for_a_point is not None:
            said.append(
                f"Rows (equal {ablation.budget}): one more point needs some {ablation.law.rows_for_a_point:,.0f} rows, "
                f"{ablation.usd_for_a_point:,.2f} USD of labels and training."
            )
    return said


def leaderboard(runs: Sequence[RunFigures]) -> list[RunFigures]:
    """All runs, the most accurate first; of equals the one with less loss."""
    return sorted(runs, key=lambda r: (-r.accuracy, r.validation_loss, r.name))


def to_csv(runs: Sequence[RunFigures]) -> str:
    """The leaderboard as a table for a spreadsheet."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(
        ["run", "change", "seed", "rows", "budget", "accuracy", "validation_loss", "best_epoch", "epochs", "seconds",
         "rows_per_second", "trained_parameters", "model", "parameters", "answer_ms"]
    )  # fmt: skip
    for run in leaderboard(runs):
        out.writerow(
            [run.name, run.change or BASELINE, run.seed, run.rows, run.budget or "", f"{run.accuracy:.5f}",
             f"{run.validation_loss:.5f}", run.best_epoch, run.epochs, f"{run.seconds:.1f}", f"{run.rows_per_second:.2f}",
             run.trained_parameters, run.model, run.parameters or "",
             "" if run.answer_ms is None else f"{run.answer_ms:.1f}"]
        )  # fmt: skip
    return text.getvalue()
