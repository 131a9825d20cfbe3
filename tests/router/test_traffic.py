"""Segments on a real disk: rotation, what a kill leaves behind, and reading back in time order."""

import asyncio
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from router.records import Answer, Comparison, Feedback, LateAnswer, Record, dump
from router.traffic import FEEDBACK, TrafficLog, lines, scan, segments, started_at

START = 1_700_000_000.0


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def record(number: int, *, at: float = START, route: str = "mail") -> Record:
    return Record(
        id=f"r{number}", at=at, route=route, mode="teacher", policy_digest="d", arm="teacher",
        served_by="teacher", reason="mode teacher", status=200,
    )  # fmt: skip


def late(number: int, *, at: float, agree: bool = True) -> LateAnswer:
    answer = Answer("student", "students", "mail", purpose="shadow", status=200, text="late")
    return LateAnswer(f"r{number}", at, "mail", answer, Comparison("exact", agree, 1.0))


def ids(found: Iterator[Record]) -> list[str]:
    return [r.id for r in found]


def test_what_is_appended_is_on_the_disk_before_the_segment_closes(tmp_path: Path) -> None:
    log = TrafficLog(tmp_path)
    assert log.append(record(1))
    (segment,) = segments(tmp_path)
    assert segment.name.endswith(f"-{os.getpid()}.open.jsonl")
    assert ids(scan(tmp_path)) == ["r1"]
    log.close()
    (closed,) = segments(tmp_path)
    assert ".open" not in closed.name
    assert list(scan(tmp_path)) == [record(1)]


def test_a_quiet_log_closes_its_old_segment_without_another_line(tmp_path: Path) -> None:
    clock = Clock()
    log = TrafficLog(tmp_path, max_age_seconds=60, now=clock)
    log.append(record(1))
    log.close_old()
    assert [".open" in s.name for s in segments(tmp_path)] == [True]
    clock.now += 61
    log.close_old()
    assert [".open" in s.name for s in segments(tmp_path)] == [False]
    log.append(record(2, at=clock.now))
    log.close()
    assert ids(scan(tmp_path)) == ["r1", "r2"]


def test_a_segment_rotates_before_it_passes_its_size(tmp_path: Path) -> None:
    clock = Clock()
    size = len(dump(record(10)))
    log = TrafficLog(tmp_path, max_bytes=3 * size, now=clock)
    for number in range(10, 17):
        clock.now += 1
        log.append(record(number, at=clock.now))
    assert [len(list(lines(s))) for s in segments(tmp_path)] == [3, 3, 1]
    assert all(s.stat().st_size <= 3 * size for s in segments(tmp_path))
    assert ids(scan(tmp_path)) == [f"r{n}" for n in range(10, 17)]


def test_a_segment_rotates_when_it_is_old(tmp_path: Path) -> None:
    clock = Clock()
    log = TrafficLog(tmp_path, max_age_seconds=60, now=clock)
    for number, at in enumerate((0, 30, 60, 61, 100)):
        clock.now = START + at
        log.append(record(number, at=clock.now))
    assert [len(list(lines(s))) for s in segments(tmp_path)] == [3, 2]
    assert [started_at(s) for s in segments(tmp_path)] == [START, START + 61]


def test_a_line_larger_than_a_segment_is_written_whole(tmp_path: Path) -> None:
    log = TrafficLog(tmp_path, max_bytes=10)
    assert log.append(record(1))
    assert list(scan(tmp_path)) == [record(1)]


def test_rotation_within_one_moment_keeps_every_line(tmp_path: Path) -> None:
    log = TrafficLog(tmp_path, max_bytes=10, now=Clock())
    for number in range(5):
        log.append(record(number))
    log.close()
    assert sorted(ids(scan(tmp_path))) == [f"r{n}" for n in range(5)]


def test_a_torn_last_line_is_skipped_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = TrafficLog(tmp_path)
    log.append(record(1))
    log.append(record(2))
    (segment,) = segments(tmp_path)
    segment.write_bytes(segment.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        assert ids(scan(tmp_path)) == ["r1"]
    assert "line 2" in caplog.text


@pytest.mark.parametrize(
    "foreign",
    [b"not json\n", b'{"kind":"other"}\n', b"[1]\n", b"\xff\xfe\x00\n", b'{"kind":"record"}\n', b"\x00" * 64 + b"\n"],
)  # fmt: skip
def test_a_foreign_line_costs_only_itself(tmp_path: Path, foreign: bytes) -> None:
    name = "20231114T221320.000000-1.jsonl"
    data = dump(record(1)) + foreign + b"\n" + dump(record(2))
    (tmp_path / name).write_bytes(data)
    assert ids(scan(tmp_path)) == ["r1", "r2"]


def test_an_empty_or_absent_folder_has_no_records(tmp_path: Path) -> None:
    assert list(scan(tmp_path)) == []
    assert list(scan(tmp_path / "nowhere")) == []


def test_scan_by_route_and_time_takes_the_beginning_and_leaves_the_end(tmp_path: Path) -> None:
    log = TrafficLog(tmp_path, now=Clock())
    for number in range(10):
        log.append(record(number, at=START + number, route="mail" if number % 2 else "chat"))
    assert ids(scan(tmp_path, routes=["mail"])) == ["r1", "r3", "r5", "r7", "r9"]
    assert ids(scan(tmp_path, since=START + 3, until=START + 6)) == ["r3", "r4", "r5"]
    assert ids(scan(tmp_path, routes={"chat"}, since=START + 3, until=START + 6)) == ["r4"]
    assert ids(scan(tmp_path, routes=[])) == []


def test_a_segment_that_cannot_hold_what_is_asked_for_is_not_opened(tmp_path: Path) -> None:
    clock = Clock()
    log = TrafficLog(tmp_path, max_age_seconds=10, now=clock)
    for hours in range(3):
        clock.now = START + hours * 3600
        log.append(record(hours, at=clock.now))
    log.close()
    early, _, newest = segments(tmp_path)
    os.utime(early, (START, START))
    for unread in (early, newest):
        unread.write_bytes(dump(record(9, at=START + 3600)))  # would be found if it were read
    os.utime(early, (START, START))
    assert ids(scan(tmp_path, since=START + 3600, until=START + 3601)) == ["r1"]


def test_a_late_answer_is_laid_over_its_record(tmp_path: Path) -> None:
    log = TrafficLog(tmp_path)
    log.append(record(1))
    log.append(record(2, at=START + 1))
    log.append(late(1, at=START + 500))
    first, second = scan(tmp_path)
    assert [a.text for a in first.answers] == ["late"]
    assert first.comparison == Comparison("exact", True, 1.0)
    assert second.answers == ()


def test_late_answers_of_one_turn_are_one_write_and_none_is_left_at_the_end(tmp_path: Path) -> None:
    async def run() -> tuple[list[str | None], list[str | None]]:
        log = TrafficLog(tmp_path)
        for number in range(3):
            log.append(record(number))
            log.append_soon(late(number, at=START + 1))
        before = texts()
        await asyncio.sleep(0)
        after = texts()
        log.append(record(3))
        log.append_soon(late(3, at=START + 1))
        log.close()
        return before, after

    def texts() -> list[str | None]:
        return [a.text for found in scan(tmp_path) for a in found.answers]

    assert asyncio.run(run()) == ([], ["late"] * 3)
    assert texts() == ["late"] * 4


def test_a_late_answer_after_a_rotation_and_past_until_is_still_found(tmp_path: Path) -> None:
    clock = Clock()
    log = TrafficLog(tmp_path, max_age_seconds=5, now=clock)
    log.append(record(1))
    clock.now += 300
    log.append(late(1, at=clock.now, agree=False))
    (found,) = scan(tmp_path, until=START + 1)
    assert found.comparison == Comparison("exact", False, 1.0)


def test_feedback_days_later_reaches_its_record(tmp_path: Path) -> None:
    clock = Clock()
    log = TrafficLog(tmp_path, now=clock)
    log.append(record(1))
    clock.now += 5 * 86400
    said = Feedback("r1", clock.now, "mail", 0.0, "better")
    log.append(said)
    log.append(record(2, at=clock.now))
    log.close()
    assert len(segments(tmp_path / FEEDBACK)) == 1
    (found,) = scan(tmp_path, until=START + 1)
    assert found.feedback == (said,)
    assert [len(r.feedback) for r in scan(tmp_path)] == [1, 0]


def test_two_writers_are_merged_in_time_order(tmp_path: Path) -> None:
    one, other = Clock(), Clock(START + 0.5)
    first, second = TrafficLog(tmp_path, now=one), TrafficLog(tmp_path, now=other)
    for step in range(20):
        writer = first if step % 3 else second
        writer.append(record(step, at=START + step))
    assert len(segments(tmp_path)) == 2
    assert ids(scan(tmp_path)) == [f"r{n}" for n in range(20)]


def test_segments_of_a_dead_process_are_closed_those_of_a_living_one_stay(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    dead = tmp_path / f"20231114T221320.000000-{child.pid}.open.jsonl"
    living = tmp_path / f"20231114T221321.000000-{os.getppid()}.open.jsonl"
    dead.write_bytes(dump(record(1)))
    living.write_bytes(dump(record(2)))
    TrafficLog(tmp_path)
    assert sorted(p.name for p in segments(tmp_path)) == [
        f"20231114T221320.000000-{child.pid}.jsonl",
        living.name,
    ]
    assert ids(scan(tmp_path)) == ["r1", "r2"]


def test_our_own_number_from_before_a_restart_is_not_a_living_process(tmp_path: Path) -> None:
    """A container's router is process 1 each time."""
    left = tmp_path / f"20231114T221320.000000-{os.getpid()}.open.jsonl"
    left.write_bytes(dump(record(1)))
    TrafficLog(tmp_path)
    assert [".open" in p.name for p in segments(tmp_path)] == [False]


def test_a_segment_that_is_closed_under_a_reader_is_read_by_its_new_name(tmp_path: Path) -> None:
    log = TrafficLog(tmp_path)
    log.append(record(1))
    (seen,) = segments(tmp_path)
    log.close()
    assert list(lines(seen)) == [record(1)]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses to let a file grow past `size`, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("room", [0, 40])
def test_a_disk_that_refuses_is_counted_never_raised_and_recovers(
    tmp_path: Path, room: int
) -> None:
    log = TrafficLog(tmp_path, now=Clock())
    log.append(record(1))
    (segment,) = segments(tmp_path)
    with file_size_limit(segment.stat().st_size + room):
        assert not log.append(record(2))
        assert not log.append(record(3))
    assert log.dropped == 2
    assert log.last_error is not None
    assert str(tmp_path) in log.last_error
    assert log.append(record(4))
    assert log.last_error is None
    assert ids(scan(tmp_path)) == ["r1", "r4"]


def test_a_folder_that_goes_away_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "traffic"
    clock = Clock()
    log = TrafficLog(folder, max_age_seconds=1, now=clock)
    log.append(record(1))
    for path in folder.glob("*.jsonl"):
        path.unlink()
    (folder / FEEDBACK).rmdir()
    folder.rmdir()
    clock.now += 5
    assert log.append(record(2))
    log.close()
    assert log.dropped == 0
    assert ids(scan(folder)) == ["r2"]
