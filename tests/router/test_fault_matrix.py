"""Faults of teacher and student against a real router process: a few here, all of them when slow tests run."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.faults import events, matrix
from benchmarks.faults.callers import Outcome
from benchmarks.faults.cells import Cell, all_cells
from benchmarks.faults.confirm import confirmed
from benchmarks.faults.matrix import CellResult
from benchmarks.faults.rules import broken_rules

FAST = [
    Cell("lorax", "none", "dark_launch", "whole"),
    Cell("lorax", "silent", "dark_launch", "whole"),
    Cell("lorax", "cut", "student", "whole"),
    Cell("lorax", "cut", "student", "pass"),
    Cell("openai", "refused", "student", "stream"),
    Cell("openai", "gzip", "hybrid", "stream"),
    Cell("openai", "500", "canary", "whole"),
    Cell("teacher", "cut", "teacher", "whole"),
    Cell("teacher", "cut", "teacher", "stream"),
    Cell("teacher", "not-http", "canary", "whole"),
    Cell("teacher", "not-json", "teacher", "stream"),
    Cell("teacher", "hang", "teacher", "whole"),
]


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> list[CellResult]:
    home = tmp_path_factory.mktemp("faults")
    return asyncio.run(matrix.run(FAST, home, lambda: None, open_for_seconds=1.5))


def test_the_rules_hold_for_faults_of_every_kind(fast: list[CellResult], tmp_path: Path) -> None:
    assert asyncio.run(confirmed(fast, tmp_path, lambda: None)) == []


def test_a_backend_whose_replies_break_off_is_left_alone(fast: list[CellResult]) -> None:
    found = {r.cell.name: r for r in fast}
    for name in ("lorax.cut.student.whole", "lorax.cut.student.pass", "teacher.cut.teacher.stream"):
        assert found[name].breaker in ("open", "half_open"), name
        assert found[name].breaker_healed == "closed", name
    # Head at once and then nothing: `first_token` ends the wait, not `total`.
    shadows = [
        a for r in found["lorax.silent.dark_launch.whole"].records.values() for a in r.answers
    ]
    waits = [a.latency_seconds for a in shadows if a.error == "timeout"]
    assert waits
    assert max(waits) < 0.9


def test_the_rules_notice_what_they_are_for() -> None:
    cell = Cell("lorax", "500", "student", "whole")
    seen = CellResult(
        cell,
        [Outcome("refused", 0.1, 502, "a", "none", "student_failed"), Outcome("hung", 6.0)],
        [Outcome("wrong", 0.1, 200, "b")],
        breaker="closed",
        breaker_healed="open",
    )
    said = "\n".join(broken_rules([seen]))
    for part in (
        "2 replies are not in the log", "1 callers saw: hung", "callers saw ['hung', 'refused']",
        "the probe did not close the breaker", "healed, and callers still saw ['wrong']",
    ):  # fmt: skip
        assert part in said


@pytest.mark.slow
def test_a_broken_rule_is_looked_at_again_and_a_loss_is_not_excused(tmp_path: Path) -> None:
    cell = Cell("openai", "500", "canary", "whole")
    hasty = CellResult(cell, [Outcome("hung", 6.0, 200, "gone")], breaker_healed="open")
    said = asyncio.run(confirmed([hasty], tmp_path, lambda: None, open_for_seconds=0.5))
    assert said == ["openai.500.canary.whole: 1 replies are not in the log"]


@pytest.mark.slow
def test_the_whole_matrix(tmp_path: Path) -> None:
    results = asyncio.run(matrix.run(all_cells(), tmp_path / "first", lambda: None))
    assert len(results) == len(all_cells())
    assert asyncio.run(confirmed(results, tmp_path / "again", lambda: None)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", events.EVENTS)
def test_nothing_is_lost_when(name: str, tmp_path: Path) -> None:
    found = asyncio.run(events.run(name, tmp_path))
    assert found.broken == []
    assert found.count("whole") > 50
