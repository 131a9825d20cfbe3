"""What an automatic verdict is worth, against people's labels of the same records. Pure.

The corrected rate is prediction-powered (Angelopoulos et al., Science 2023): the mean of the automatic verdicts over all
pairs, plus the mean of what people said beyond them over the labelled ones. It holds whatever the judge's bias, if the
labelled pairs are a random sample of all: labels of flags that were raised *because* of a disagreement are not.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from monitoring.disagreement import kappa
from monitoring.slices import Share

Z_95 = 1.959963984540054
HUMAN = {"accept_student": False, "accept_teacher": True, "correct": True}
"""A reviewer's verdict → whether the student was wrong; a discarded record says nothing."""


@dataclass(frozen=True, slots=True)
class Corrected:
    """A share with its 95 % interval, from many automatic and few human verdicts."""

    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Automatic verdicts against people's, `bad` being a student that is wrong."""

    agreed: Share
    kappa: float | None
    caught: Share
    """Of those that people call bad: also called bad automatically."""
    false_alarms: Share
    """Of those that people call good: called bad automatically."""
    corrected: Corrected | None
    """The share of bad answers among all pairs; None with fewer than two labelled pairs."""


def calibrated(bad: Mapping[str, bool], human: Mapping[str, bool]) -> Calibration:
    """Hold automatic verdicts (by record) against people's."""
    both = [(bad[name], human[name]) for name in bad if name in human]
    confusion: dict[str, Counter[str]] = defaultdict(Counter)
    for machine, person in both:
        confusion[str(person)][str(machine)] += 1
    worse, fine = [m for m, p in both if p], [m for m, p in both if not p]
    return Calibration(
        agreed=Share.of(sum(m == p for m, p in both), len(both)),
        kappa=kappa(confusion),
        caught=Share.of(sum(worse), len(worse)),
        false_alarms=Share.of(sum(fine), len(fine)),
        corrected=_corrected(
            [float(v) for v in bad.values()], [(float(p), float(m)) for m, p in both]
        ),
    )


def _corrected(everywhere: list[float], labelled: list[tuple[float, float]]) -> Corrected | None:
    if len(labelled) < 2:
        return None
    all_, gap = np.array(everywhere), np.array([person - machine for person, machine in labelled])
    share = float(all_.mean() + gap.mean())
    variance = all_.var() / len(all_) + gap.var(ddof=1) / len(gap)
    half = Z_95 * math.sqrt(float(variance))
    return Corrected(share, max(0.0, share - half), min(1.0, share + half))
