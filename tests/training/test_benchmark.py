"""The training benchmark's arithmetic: processor seconds to a loss, by two ways. No model."""

from typing import Any

import pytest

from benchmarks.training import report
from benchmarks.training.run import is_done


def state(*points: tuple[int, float, float]) -> dict[str, Any]:
    return {
        "losses": [[rows, loss] for rows, loss, _ in points],
        "loss_cpu_seconds": [cpu for _, _, cpu in points],
        "rows_seen": points[-1][0], "cpu_seconds": points[-1][2], "seconds": [1.0],
        "tokens_a_row": 70.0, "peak_mib": 1024.0, "done": True,
    }  # fmt: skip


OURS = state((16, 2.0, 20.0), (32, 1.0, 24.0), (64, 0.5, 32.0))


@pytest.mark.parametrize(
    ("point", "rows", "said"),
    [
        pytest.param((16, 5.0, 100.0), 16, "at least 5.0", id="our first point is a bound"),
        pytest.param((16, 1.5, 96.0), 32, "4.0", id="our first point at or below counts"),
        pytest.param((16, 1.0, 96.0), 32, "4.0", id="an equal loss is reached"),
        pytest.param((16, 0.4, 96.0), None, "ours has not come so low", id="we may be the higher"),
    ],
)
def test_a_loss_is_reached_at_the_first_point_at_or_below_it(
    point: tuple[int, float, float], rows: int | None, said: str
) -> None:
    (level,) = report.levels(OURS, state(point))
    assert (level.own.rows if level.own else None) == rows
    assert level.said == said


def test_only_new_lows_of_the_other_way_are_levels() -> None:
    other = state((8, 3.0, 50.0), (16, 3.5, 100.0), (24, 0.9, 150.0))
    assert [level.other.rows for level in report.levels(OURS, other)] == [8, 24]


def test_the_tables_have_a_row_a_level_and_the_ratio_at_the_lowest() -> None:
    results = {"fit": OURS, "trl": state((8, 3.0, 50.0), (24, 0.9, 160.0))}
    page = report.curves(results)
    assert "| 3.000 | 8 | 50 | 16 | 2.000 | 20 | at least 2.5 |" in page
    assert "| 0.900 | 24 | 160 | 64 | 0.500 | 32 | 5.0 |" in page
    assert "| 0.500 | not reached in 24 | 160 | 64 | 0.500 | 32 | more than 5.0 |" in page
    assert "not reached in 24 | 160 | 32" not in page, "1.0 is above their lowest"
    last = report.table(results).splitlines()[-1]
    assert last.endswith("| 24: 0.900 | 5.0 |")


def test_more_rows_than_before_are_not_done_yet() -> None:
    assert is_done(OURS, None)
    assert is_done(OURS, 64)
    assert not is_done(OURS, 128)
    assert not is_done({}, None)
