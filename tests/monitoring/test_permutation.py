"""The joint test of columns: against scipy, and its promise on windows without a difference."""

import numpy as np
import pytest
from scipy import stats

from monitoring.permutation import chi_square, joint_tests


def test_the_chi_square_is_scipys() -> None:
    codes = np.array([0] * 30 + [1] * 20 + [2] * 10)
    marks = np.zeros((60, 1), dtype=np.uint8)
    marks[[*range(12), *range(30, 45), 50], 0] = 1
    table = [[18, 5, 9], [12, 15, 1]]
    assert chi_square(codes, marks)[0] == pytest.approx(stats.chi2_contingency(table).statistic)


def test_one_columns_p_value_is_that_of_scipys_permuted_anderson_darling() -> None:
    generator = np.random.default_rng(4)
    before, now = generator.normal(0, 1, 30), generator.normal(0.5, 1, 30)
    found = joint_tests({"x": np.concatenate([before, now])}, 30, generator)["x"]
    method = stats.PermutationMethod(n_resamples=2_000, rng=np.random.default_rng(1))
    wanted = stats.anderson_ksamp([before, now], variant="midrank", method=method).pvalue
    assert 0.005 < wanted < 0.5
    assert found.p_value == pytest.approx(wanted, abs=0.03)
    assert found.adjusted == pytest.approx(found.p_value)


def test_windows_without_a_difference_alarm_at_the_rate_asked_for() -> None:
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        size = generator.exponential(1, 90)
        columns: dict[str, np.ndarray] = {
            "size": size,
            "words": np.floor(3 * size),
            "constant": np.ones(90),
            "class": np.where(generator.random(90) < 0.05, "rare", "usual"),
            "topics": generator.normal(0, 1, (90, 4)),
        }
        found = joint_tests(columns, 60, generator, shuffles=199)
        assert found["constant"].p_value == 1.0
        alarms += min(test.adjusted for test in found.values()) <= 0.1
    low, high = stats.binom.ppf([0.001, 0.999], 300, 0.1)
    assert low <= alarms <= high  # above: false alarms; far below: power given away


@pytest.mark.parametrize("name", ["number", "class", "topics"])
def test_the_column_that_moved_is_the_one_that_alarms(name: str) -> None:
    generator = np.random.default_rng(1)
    columns: dict[str, np.ndarray] = {
        "number": generator.normal(0, 1, 400),
        "class": generator.choice(["a", "b"], 400),
        "topics": generator.normal(0, 1, (400, 8)),
    }
    moved = columns[name]
    if name == "class":
        moved[300:340] = "new"
    else:
        moved[300:] += 1
    found = joint_tests(columns, 300, generator)
    assert [n for n, test in found.items() if test.adjusted <= 0.02] == [name]
