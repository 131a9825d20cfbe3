"""Token buckets: never more than a minute's worth at once, the rate in the long run, shared by processes."""

import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.limits import MAX_DEBT_SECONDS, Buckets


@pytest.fixture
def buckets(tmp_path: Path) -> Buckets:
    return Buckets(tmp_path / "limits.bin")


def test_a_minutes_worth_at_once_then_the_rate(buckets: Buckets) -> None:
    assert [buckets.take("a", 60, 1, 1000.0) for _ in range(60)] == [0.0] * 60
    assert buckets.take("a", 60, 1, 1000.0) == pytest.approx(1.0)
    assert buckets.take("a", 60, 1, 1000.5) == pytest.approx(0.5)
    assert buckets.take("a", 60, 1, 1001.0) == 0.0
    assert buckets.take("b", 60, 1, 1000.0) == 0.0, "callers share a bucket"


@settings(deadline=None, max_examples=30)
@given(
    steps=st.lists(st.floats(0, 5, allow_nan=False), min_size=1, max_size=200),
    per_minute=st.integers(1, 300),
)
def test_never_more_than_the_rate_allows(
    tmp_path_factory: pytest.TempPathFactory, steps: list[float], per_minute: int
) -> None:
    buckets = Buckets(tmp_path_factory.mktemp("limits") / "limits.bin")
    now, begin, taken = 1e9, 1e9, 0
    for step in steps:
        now += step
        while (wait := buckets.take("a", per_minute, 1, now)) == 0:
            taken += 1
        assert taken <= per_minute + (now - begin) * per_minute / 60 + 1e-3
        now += wait + 1e-4
        assert buckets.take("a", per_minute, 1, now) == 0, "the wait that it named was too short"
        taken += 1
    buckets.close()


def test_a_cost_that_is_known_afterwards_is_paid_off(buckets: Buckets) -> None:
    assert buckets.take("a", 600, 0, 1000.0) == 0.0
    buckets.charge("a", 600, 1200, 1000.0)  # two minutes' worth
    assert buckets.take("a", 600, 0, 1000.0) == pytest.approx(60.0)
    assert buckets.take("a", 600, 0, 1059.9) > 0
    assert buckets.take("a", 600, 0, 1060.1) == 0.0


def test_a_clock_that_is_set_back_shuts_nobody_out_for_long(buckets: Buckets) -> None:
    buckets.charge("a", 60, 60, 1e9)
    assert 0 < buckets.take("a", 60, 1, 1e9 - 86400) <= MAX_DEBT_SECONDS


def test_it_outlives_a_restart(tmp_path: Path) -> None:
    first = Buckets(tmp_path / "limits.bin")
    first.charge("a", 60, 60, 1000.0)
    first.close()
    assert Buckets(tmp_path / "limits.bin").take("a", 60, 1, 1000.0) == pytest.approx(1.0)


def test_more_callers_than_slots_near_each_other(buckets: Buckets) -> None:
    for name in range(3000):
        buckets.charge(f"caller {name}", 60, 30, 1000.0)
    held = sum(buckets.take(f"caller {n}", 60, 31, 1000.0) > 0 for n in range(3000))
    assert held == 3000, "a bucket that is not full was forgotten"


def _spend(path: Path, times: int) -> None:
    buckets = Buckets(path)
    for _ in range(times):
        buckets.charge("a", 60_000, 1, 1000.0)


def test_processes_share_a_bucket(tmp_path: Path) -> None:
    path = tmp_path / "limits.bin"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_spend, args=(path, 3000)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    # 6,000 of 60,000 are gone, not one of them lost: 54,000 are left to take and no more.
    assert Buckets(path).take("a", 60_000, 54_000, 1000.0) == 0.0
    assert Buckets(path).take("a", 60_000, 1, 1000.0) > 0
