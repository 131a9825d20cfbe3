"""A ladder of base models, smallest first: how far it is worth climbing. Pure.

A rung counts only when both hold: the paired interval of its gain over the rung below is above 0 (rows), and the gain is
beyond what seeds alone do to either. At the first rung that does not count the climb stops. Rungs are tested in an order
that is fixed beforehand and none is tested after a failure, so no correction for several tests is needed (fixed-sequence
testing, Maurer, Hothorn & Lehmacher 1995).
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from training.experiment_run import RunFigures
from training.metrics import Rate, rate
from training.study_figures import Gap, seeds_gap

LEAST_SEEDS = 2
OVERFIT_NATS = 0.5
"""Validation loss less training loss from which a rung is said to have learnt rows by heart; a sign to look, no rule."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One base model over all its seeds."""

    model: str
    parameters: int
    seeds: int
    accuracy: Rate
    """The mean of the seeds' hits with its interval over rows."""
    each: tuple[float, ...]
    """Accuracy of each seed."""
    gain: Gap | None
    """Over the rung below, as shares; None for the lowest."""
    noise: float | None
    """A gain of two means goes beyond it in 5 % of cases by seeds alone."""
    holds: bool
    """It beats the rung below beyond noise; the lowest always holds."""
    overfit: float | None
    """Validation loss less training loss at the best epoch, nats a token."""
    training_seconds: float
    rows_per_second: float
    answer_ms: float | None
    """Median time of one greedy answer, one at a time."""
    answer_ms_p95: float | None
    training_usd: float | None
    answers_usd: float | None
    """1,000 answers, one at a time: batching makes them cheaper."""


@dataclass(frozen=True, slots=True)
class Climb:
    """The rungs that were run, the one to take, and why."""

    rungs: tuple[Rung, ...]
    planned: int
    take: str | None
    """The model of the rung to take; None while nothing is known."""
    is_over: bool
    """No further rung needs to be run."""
    sentences: tuple[str, ...]


def seeds_alone(one: Sequence[float], other: Sequence[float]) -> float | None:
    """How far the means of two groups of runs lie apart in 95 % of cases by seeds alone (Welch's t); None with one seed."""
    if min(len(one), len(other)) < LEAST_SEEDS:
        return None
    parts = [statistics.variance(group) / len(group) for group in (one, other)]
    total = sum(parts)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(
        part**2 / (len(group) - 1) for part, group in zip(parts, (one, other), strict=True)
    )
    return float(stats.t.ppf(0.975, freedom) * math.sqrt(total))


def groups_of(
    models: Sequence[str], base: str, seeds: int, runs: Sequence[RunFigures]
) -> list[tuple[str, list[RunFigures]]]:
    """Each rung's finished runs, from the lowest up to the first that is not done with all its seeds.

    Args:
        base: the baseline's model; its rung is the baseline's runs.
    """
    found = []
    for model in models:
        own = [r for r in runs if r.is_rung and r.model == model]
        if model == base:
            own = [r for r in runs if not r.is_rung and r.budget is None and not r.change]
        if len(own) < seeds:
            break
        found.append((model, sorted(own, key=lambda r: r.seed)))
    return found


def climb(
    groups: Sequence[tuple[str, Sequence[RunFigures]]],
    planned: int,
    *,
    worth: float = 0.0,
    usd_per_hour: float | None = None,
    climb_all: bool = False,
) -> Climb:
    """Judge the rungs in their order.

    Args:
        groups: model and its finished runs, smallest first, without the rungs that were not reached.
        planned: rungs of the whole ladder.
        worth: gain (a share) that a rung must bring beside being beyond noise.
        usd_per_hour: what the machine costs that these figures come from.
        climb_all: all rungs were asked for; the rule still says which to take.
    """
    rungs: list[Rung] = []
    below: Sequence[RunFigures] = ()
    stopped = False
    for model, runs in groups:
        made = _rung(model, runs, below, worth, usd_per_hour)
        rungs.append(made)
        stopped = stopped or not made.holds
        below = runs
    held = _held(rungs)
    is_over = len(rungs) == planned or (stopped and not climb_all)
    return Climb(
        tuple(rungs), planned, held[-1].model if held else None, is_over,
        tuple(_words(rungs, held, planned, worth, is_over)),
    )  # fmt: skip


def _held(rungs: Sequence[Rung]) -> list[Rung]:
    """The rungs up to the first that does not hold."""
    first = next((i for i, rung in enumerate(rungs) if not rung.holds), len(rungs))
    return list(rungs[:first])


def _rung(
    model: str,
    runs: Sequence[RunFigures],
    below: Sequence[RunFigures],
    worth: float,
    usd_per_hour: float | None,
) -> Rung:
    ids = sorted(runs[0].right)
    each = tuple(run.accuracy for run in runs)
    gain, noise, holds = None, None, True
    if below:
        mine, theirs = ([[run.right[i] for i in ids] for run in group] for group in (runs, below))
        gain = seeds_gap(mine, theirs)
        noise = seeds_alone(each, [run.accuracy for run in below])
        beyond = noise is not None and gain.difference > max(noise, worth)
        holds = beyond and gain.low > 0
    seconds = statistics.fmean(run.seconds for run in runs)
    gaps = [run.validation_loss - run.train_loss for run in runs if run.train_loss is not None]
    times = [run.answer_ms for run in runs if run.answer_ms is not None]
    tails = [run.answer_ms_p95 for run in runs if run.answer_ms_p95 is not None]
    answer = statistics.fmean(times) if times else None
    return Rung(
        model=model,
        parameters=runs[0].parameters,
        seeds=len(runs),
        accuracy=rate(round(statistics.fmean(each) * len(ids)), len(ids)),
        each=each,
        gain=gain,
        noise=noise,
        holds=holds,
        overfit=statistics.fmean(gaps) if gaps else None,
        training_seconds=seconds,
        rows_per_second=statistics.fmean(run.rows_per_second for run in runs),
        answer_ms=answer,
        answer_ms_p95=statistics.fmean(tails) if tails else None,
        training_usd=None if usd_per_hour is None else seconds / 3600 * usd_per_hour,
        answers_usd=None if usd_per_hour is None or answer is None else answer / 3600 * usd_per_hour,
    )  # fmt: skip


def short(model: str) -> str:
    """A folder's or hub id's last part."""
    return model.rstrip("/").rpartition("/")[2]


def _words(
    rungs: Sequence[Rung], held: Sequence[Rung], planned: int, worth: float, is_over: bool
) -> list[str]:
    if not rungs:
        return ["Ladder: no rung has been run yet."]
    said = [_gain(rung, lower, worth) for lower, rung in itertools.pairwise(rungs)]
    for lower, rung in itertools.pairwise(rungs):
        if rung.parameters and rung.parameters <= lower.parameters:
            said.append(f"Ladder: {short(rung.model)} is not larger than {short(lower.model)}: the order is not one of sizes.")  # fmt: skip
    said += [
        f"Ladder: {short(rung.model)} may know its rows by heart: validation loss is {rung.overfit:.2f} nats above training loss."
        for rung in rungs
        if rung.overfit is not None and rung.overfit > OVERFIT_NATS
    ]
    take = held[-1]
    why = "nothing above it was tried" if len(rungs) == len(held) else _why_not(rungs[len(held)])
    rest = planned - len(rungs)
    left = f"; {rest} larger one{'s were' if rest > 1 else ' was'} not run" if rest else ""
    if not is_over:
        said.append(f"Ladder: not decided yet; so far {short(take.model)} ({rest} to go).")
        return said
    if len(held) == planned:
        why = "every rung beat the one below, so a larger model may bring more"
    said.append(f"Ladder: take {short(take.model)}{_price(take)}: {why}{left}.")
    return said


def _gain(rung: Rung, lower: Rung, worth: float) -> str:
    assert rung.gain is not None
    gain = rung.gain
    noise = "unknown (one seed)" if rung.noise is None else f"up to {100 * rung.noise:.1f}"
    word = "beats" if rung.holds else "does not beat"
    asked = f", and {100 * worth:.1f} are asked for" if worth else ""
    return (
        f"Ladder: {short(rung.model)} {word} {short(lower.model)} beyond noise: {100 * gain.difference:+.1f} points "
        f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}], p = {gain.p_value:.2g}; by seeds alone {noise}{asked}."
    )


def _why_not(rung: Rung) -> str:
    if rung.noise is None:
        return f"whether {short(rung.model)} is better cannot be told with one seed"
    return f"{short(rung.model)} costs more and was not shown to be better"


def _price(rung: Rung) -> str:
    told = [f"{100 * rung.accuracy.share:.1f} % exact"]
    if rung.answer_ms is not None:
        told.append(f"{rung.answer_ms:.0f} ms an answer")
    if rung.answers_usd is not None:
        told.append(f"{rung.answers_usd:.4f} USD for 1,000 answers")
    return f" ({', '.join(told)})"
