"""Intervals and tests that hold however often one looks."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring import sequential
from monitoring.intervals import clopper_pearson, holm, wilson


@pytest.mark.parametrize(
    ("count", "rows", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (355, 400, 0.8529, 0.9149),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_gives_published_values(count: int, rows: int, low: float, high: float) -> None:
    assert wilson(count, rows) == pytest.approx((low, high), abs=2e-4)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_exact_interval_contains_the_share(case: tuple[int, int]) -> None:
    count, rows = case
    low, high = clopper_pearson(count, rows)
    assert low <= count / rows <= high


def test_no_rows_say_nothing() -> None:
    assert wilson(0, 0) == clopper_pearson(0, 0) == (0.0, 1.0)
    assert holm([]) == []


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def promoted(p: float, limit: float, seed: int, rows: int = 1500) -> str:
    """What the two e-processes decide, looked at every ten requests."""
    draws = np.random.default_rng(seed).random(rows) < p
    bad = np.cumsum(draws)
    for n in range(10, rows + 1, 10):
        if sequential.log_e_below(int(bad[n - 1]), n, limit) >= math.log(20):
            return "kept"
        if sequential.log_e_above(int(bad[n - 1]), n, limit) >= math.log(20):
            return "breached"
    return "open"


def test_a_student_at_the_limit_is_rarely_passed_however_often_one_looks() -> None:
    found = [promoted(0.10, 0.10, seed) for seed in range(200)]
    assert found.count("kept") <= 10
    assert found.count("breached") <= 10


def test_a_good_one_is_passed_and_a_bad_one_caught() -> None:
    assert [promoted(0.04, 0.10, seed) for seed in range(40)].count("kept") == 40
    assert [promoted(0.20, 0.10, seed) for seed in range(40)].count("breached") == 40


def test_the_rate_sequence_is_the_published_one() -> None:
    for rows, low, high in ((100, 0.840, 0.993), (1000, 0.920, 0.972)):
        found = sequential.rate_sequence(round(0.95 * rows), rows)
        assert (found.low, found.high) == pytest.approx((low, high), abs=2e-3)


@pytest.mark.parametrize("seed", range(5))
def test_mean_and_quantile_sequences_cover_at_every_look(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.beta(8, 2, 1200)
    seconds = generator.lognormal(0, 0.5, 1200)
    truth = math.exp(0.5 * 1.6449)
    for n in (30, 200, 600, 1200):
        mean = sequential.mean_sequence(list(scores[:n]))
        assert mean.low <= 0.8 <= mean.high
        p95 = sequential.quantile_sequence(list(seconds[:n]), 0.95)
        assert p95.low <= truth <= p95.high
    assert mean.high - mean.low < 0.06


def test_a_limit_outside_zero_and_one_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: between 0 and 1"):
        sequential.log_e_above(1, 2, 1.0)


@pytest.mark.parametrize("rows", [1_000, 6_000, 7_000, 10_000, 1_000_000, 10_000_000])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.05])
def test_a_long_good_run_is_never_evidence_of_a_breach(rows: int, share: float) -> None:
    bad = int(share * rows)
    assert sequential.log_e_above(bad, rows, 0.10) < 0
    assert sequential.log_e_below(bad, rows, 0.10) > math.log(20)


def test_the_tail_goes_on_smoothly_where_floats_end() -> None:
    found = [sequential.log_e_above(0, rows, 0.10) for rows in range(6_000, 8_000, 10)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == pytest.approx(-math.log(8_000), abs=0.1)


@given(st.integers(0, 400), st.integers(0, 400), st.floats(0.01, 0.99))
def test_both_directions_never_hold_at_once(bad: int, good: int, limit: float) -> None:
    rows = bad + good
    above = sequential.log_e_above(bad, rows, limit)
    below = sequential.log_e_below(bad, rows, limit)
    assert min(above, below) < math.log(10)
    assert sequential.log_e_above(bad + 1, rows + 1, limit) >= above - 1e-9
    assert sequential.log_e_below(bad, rows + 1, limit) >= below - 1e-9
