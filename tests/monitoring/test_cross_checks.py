"""Our sequential tests and calibration against two libraries of other people: `ville` and `mapie` (the extra `dev`)."""

import math

import numpy as np
import pytest
import ville
from mapie.risk_control import methods
from mapie.risk_control.fwer_control import FWERFixedSequenceTesting

from monitoring import sequential
from monitoring.calibrate import Pairs, calibrate, p_value, path


def stream(share: float, rows: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(rows) < share).astype(float)


@pytest.mark.parametrize("rows", [1, 20, 500, 5_000])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_a_rates_sequence_is_villes(share: float, rows: int) -> None:
    bits = stream(share, rows, rows)
    found = sequential.rate_sequence(int(bits.sum()), rows, alpha=0.05)
    wanted = ville.BernoulliCS(alpha=0.05, intersect=False).fit(bits).interval()
    assert (found.low, found.high) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("limit", [0.02, 0.1, 0.9])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.95])
def test_the_two_one_sided_e_values_mix_to_villes_two_sided_one(share: float, limit: float) -> None:
    """A uniform prior puts 1 - limit of its mass above the limit, so E = (1 - limit) E_above + limit E_below."""
    bits = stream(share, 400, 7)
    theirs = ville.BernoulliTest(limit).fit(bits).log_e_values_
    for rows in (1, 10, 100, 400):
        bad = int(bits[:rows].sum())
        above, below = (
            f(bad, rows, limit) for f in (sequential.log_e_above, sequential.log_e_below)
        )
        mixed = np.logaddexp(math.log1p(-limit) + above, math.log(limit) + below)
        assert mixed == pytest.approx(float(theirs[rows - 1]), abs=1e-8)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize("rows", [1, 30, 3_000])
def test_a_means_sequence_is_villes_empirical_bernstein(rows: int, alpha: float) -> None:
    values = np.random.default_rng(rows).beta(8, 2, rows)
    found = sequential.mean_sequence(values.tolist(), alpha)
    wanted = ville.EmpiricalBernsteinCS(alpha=alpha).fit(values).interval()
    assert (found.low, found.high) == pytest.approx(wanted, abs=1e-9)
    bets = ville.BettingCS(alpha=alpha).fit(values).interval()
    assert max(found.low, bets[0]) < min(found.high, bets[1])


def test_a_quantiles_sequence_holds_where_villes_does_and_is_narrower_in_the_tail() -> None:
    truth = math.exp(1.6448536269514722 * 0.5)
    for seed in range(10):
        values = np.random.default_rng(seed).lognormal(0, 0.5, 3_000)
        found = sequential.quantile_sequence(values.tolist(), 0.95)
        low, high = ville.QuantileCS(0.95, intersect=False).fit(values).interval()
        assert found.low <= truth <= found.high
        assert low <= truth <= high
        assert low <= found.low
        assert found.high <= high  # theirs bounds the count by Hoeffding's variance, a quarter


def pairs(rows: int, seed: int) -> Pairs:
    generator = np.random.default_rng(seed)
    confidence = generator.random(rows)
    wrong = generator.random(rows) < 0.25 * (1 - confidence)
    ones = np.ones(rows)
    return Pairs(confidence, np.zeros(rows), wrong, ones.astype(bool), ones, generator.random(rows))


@pytest.mark.parametrize("bad", [0, 3, 9, 40])
def test_a_thresholds_p_value_is_mapies(bad: int) -> None:
    rows = 256  # a power of two: theirs multiplies the rate by the rows and rounds up
    wrong = np.arange(rows) < bad
    ones = np.ones(rows)
    ours = p_value(
        Pairs(ones, np.zeros(rows), wrong, ones.astype(bool), ones, np.zeros(rows)), 0.05
    )
    theirs = methods.compute_hoeffding_bentkus_p_value(
        np.array([bad / rows]), rows, 0.05, binary=True
    )
    assert ours == pytest.approx(float(theirs[0, 0]))


@pytest.mark.parametrize("seed", range(5))
def test_the_thresholds_accepted_are_those_of_mapies_fixed_sequence(seed: int) -> None:
    search, test = pairs(700, seed), pairs(1_400, 100 + seed)
    points = path(search, 0.1, 0.1)
    found = calibrate(search, points, test, limit=0.1, confidence=0.9)
    accepted = [i for i, step in enumerate(found.curve) if step.accepted]
    assert accepted
    start = accepted[0]
    theirs = FWERFixedSequenceTesting().run(
        np.array([step.p_value for step in found.curve[start:]]), 1 - 0.9
    )
    assert accepted == [start + int(i) for i in theirs]
