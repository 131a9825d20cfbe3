"""Segments to Parquet: each record once, whatever was killed, refused, doubled or torn on the way."""

import logging
import os
import random
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import SettingsError
from router.log_layout import Manifest
from router.records import (
    Answer,
    Record,
    Usage,
    dump,
)
from router.ship import Stopping, Sweep, alone, follow, ship_once, wait_seconds
from router.traffic import scan, segments
from tests.router.ship_logs import (
    DAY,
    START,
    Dying,
    Killed,
    late,
    record,
    shipped,
    shipper,
    stamp,
    traffic,
    write,
)


def test_the_manifest_counts_and_times_what_was_shipped(tmp_path: Path) -> None:
    write(tmp_path / "traffic", traffic(20), 1000)
    totals = shipped(tmp_path / "traffic", tmp_path / "store").totals
    (path,) = (tmp_path / "store" / "segments").glob("2*.json")
    manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    assert (manifest.records, manifest.answers) == (totals.records, totals.answers) == (27, 17)
    assert totals.feedback == 2
    assert sum(p.rows for p in manifest.parts if p.path.startswith("records")) == 27
    assert all((tmp_path / "store" / p.path).stat().st_size == p.bytes for p in manifest.parts)


def test_a_second_sweep_and_a_second_shipper_ship_nothing_again(tmp_path: Path) -> None:
    log = tmp_path / "traffic", tmp_path / "store"
    write(log[0], traffic(), 60)
    shipped(*log)
    before = {p: p.stat().st_mtime_ns for p in log[1].rglob("*") if p.is_file()}
    assert shipper(*log).sweep() == Sweep()
    assert {p: p.stat().st_mtime_ns for p in log[1].rglob("*") if p.is_file()} == before


def test_an_open_segment_stays_and_is_counted(tmp_path: Path) -> None:
    write(tmp_path, [record(1, START)], 1)
    (closed,) = segments(tmp_path)
    opened = tmp_path / f"{stamp(START + 5)}-9.open.jsonl"
    opened.write_bytes(dump(record(2, START + 5)))
    made = shipper(tmp_path, tmp_path / "store", keep_seconds=0)
    assert made.sweep() == Sweep(shipped=1, open=1)
    assert segments(tmp_path) == [opened]
    assert [r.id for r in scan(tmp_path / "store")] == ["r1"]
    assert not closed.exists()


def test_segments_are_deleted_when_shipped_and_old_never_before(tmp_path: Path) -> None:
    write(tmp_path, [record(1, START), record(2, START + 10)], 1)
    old, new = segments(tmp_path)
    os.utime(old, (START, START))
    os.utime(new, (START + 10, START + 10))
    now = START + DAY + 5
    (tmp_path / "store").write_text("in the way")
    stuck = shipper(tmp_path, tmp_path / "store", now=lambda: now).sweep()
    assert not stuck.ok
    assert segments(tmp_path) == [old, new]
    (tmp_path / "store").unlink()
    made = shipper(tmp_path, tmp_path / "store", now=lambda: now)
    assert made.sweep().ok
    assert (segments(tmp_path), made.totals.deleted) == ([new], 1)
    now += 10
    made.sweep()
    assert (segments(tmp_path), made.totals.deleted) == ([], 2)
    assert [r.id for r in scan(tmp_path / "store")] == ["r1", "r2"]


def test_a_segment_that_grows_after_all_is_shipped_again_whole(tmp_path: Path) -> None:
    """Routers in two containers see each other's processes as dead, and close segments that are being written."""
    write(tmp_path, [record(1, START)], 1)
    (segment,) = segments(tmp_path)
    made = shipped(tmp_path, tmp_path / "store")
    with segment.open("ab") as out:
        out.write(dump(record(2, START + 1)) + dump(late(1, START + 2)))
    assert made.sweep().shipped == 1
    assert list(scan(tmp_path / "store")) == list(scan(tmp_path))
    assert shipper(tmp_path, tmp_path / "store").sweep() == Sweep()


def test_two_routers_segments_of_one_name_are_both_kept(tmp_path: Path) -> None:
    for router, number in (("one", 1), ("two", 2)):
        write(tmp_path / router, [record(number, START)], 1)
        shipped(tmp_path / router, tmp_path / "store")
        assert shipper(tmp_path / router, tmp_path / "store").sweep() == Sweep()
    assert [r.id for r in scan(tmp_path / "store")] == ["r1", "r2"]


def test_torn_and_foreign_lines_stay_out_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = b'not json\n\n{"kind":"other"}\n{"kind":"record","id":"x","at":1.0}\n'
    torn = dump(record(3, START + 2))[:-30]
    data = dump(record(1, START)) + foreign + dump(record(2, START + 1)) + torn
    (tmp_path / f"{stamp(START)}-1.jsonl").write_bytes(data)
    with caplog.at_level(logging.WARNING):
        made = shipped(tmp_path, tmp_path / "store")
    assert (made.totals.records, made.totals.unreadable) == (2, 4)
    assert "4 lines" in caplog.text
    assert list(scan(tmp_path / "store")) == list(scan(tmp_path))


def test_a_body_that_is_not_utf8_and_a_number_past_64_bits_do_not_stop_the_log(
    tmp_path: Path,
) -> None:
    many = msgspec.structs.replace(record(2, START + 1), answers=(Answer("teacher", "u", "m", usage=Usage(10**30)),))  # fmt: skip
    data = dump(record(1, START)).replace(b"h\\u00e9", b"h\xff") + dump(many)
    (tmp_path / f"{stamp(START)}-1.jsonl").write_bytes(data)
    shipped(tmp_path, tmp_path / "store")
    first, second = scan(tmp_path / "store")
    assert b"h\xff" in bytes(first.request)
    assert first == next(scan(tmp_path))
    assert second.answers[0].usage.prompt_tokens == 2**63 - 1


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_order_of_lines_and_any_kill_gives_each_record_once(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("kill")
    seed = data.draw(st.integers(0, 2**32))
    rng = random.Random(seed)
    lines = traffic(data.draw(st.integers(1, 16)))
    longest = data.draw(st.sampled_from([0.0, 5.0, 290.0]))
    took = {id(line): rng.uniform(0, longest) * isinstance(line, Record) for line in lines}
    lines.sort(key=lambda line: line.at + took[id(line)])  # written when the request ends
    if data.draw(st.booleans()):
        lines = [line for line in lines for _ in range(rng.choice((1, 1, 1, 2)))]  # written twice
    write(root / "traffic", lines, data.draw(st.integers(1, 30)))
    expected = list(scan(root / "traffic"))
    assert len(expected) == len({line.id for line in lines if isinstance(line, Record)})
    for puts in data.draw(st.lists(st.integers(0, 40), max_size=3)):
        store = Dying(root / "store", puts, data.draw(st.booleans()))
        try:
            shipper(root / "traffic", store, keep_seconds=0).sweep()
        except Killed:
            have = {r.id for r in scan([root / "store", root / "traffic"])}
            assert have == {r.id for r in expected}
    assert shipper(root / "traffic", root / "store", keep_seconds=0).sweep().ok
    assert segments(root / "traffic") == []
    assert list(scan(root / "store")) == expected


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses files larger than `size`, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_loses_nothing_and_leaves_no_half_files(tmp_path: Path) -> None:
    write(tmp_path / "traffic", traffic(30), 100)
    before = segments(tmp_path / "traffic")
    made = shipper(tmp_path / "traffic", tmp_path / "store", keep_seconds=0)
    with file_size_limit(2000):
        sweep = made.sweep()
    assert not sweep.ok
    assert "File too large" in sweep.errors[0]
    assert segments(tmp_path / "traffic") == before
    assert not [p for p in (tmp_path / "store").rglob("*.part")]
    expected = list(scan(tmp_path / "traffic"))
    assert made.sweep().ok
    assert list(scan(tmp_path / "store")) == expected


def test_a_store_that_fails_is_tried_again_with_growing_waits(tmp_path: Path) -> None:
    write(tmp_path / "traffic", [record(1, START)], 1)
    (tmp_path / "store").write_text("in the way")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            (tmp_path / "store").unlink()

    made = shipper(tmp_path / "traffic", tmp_path / "store")
    assert ship_once(made, 5, wait, lambda *_: None).ok
    assert [1 / 2 <= w / 2**i <= 1 for i, w in enumerate(waits)] == [True] * 3
    assert made.totals.failures == 3
    assert [wait_seconds(n, 1.0) for n in (1, 2, 3, 7, 5000)] == [1, 2, 4, 60, 60]


def test_following_ships_what_closes_and_at_the_end_what_its_router_closes(tmp_path: Path) -> None:
    write(tmp_path, [record(1, START)], 1)
    opened = tmp_path / f"{stamp(START + 5)}-9.open.jsonl"
    opened.write_bytes(dump(record(2, START + 5)))
    stopping = Stopping(drain_seconds=30)
    seen: list[Sweep] = []

    def tell(sweep: Sweep, _: float) -> None:
        seen.append(sweep)
        if len(seen) == 2:
            stopping.ask()
            opened.rename(tmp_path / opened.name.replace(".open", ""))

    made = shipper(tmp_path, tmp_path / "store")
    last = follow(made, stopping, 0.01, tell)
    assert (seen[0].shipped, seen[1], last) == (1, Sweep(open=1), Sweep(shipped=1))
    assert [r.id for r in scan(tmp_path / "store")] == ["r1", "r2"]


def test_asked_twice_it_stops_between_two_files_and_says_what_waits(tmp_path: Path) -> None:
    write(tmp_path / "traffic", traffic(30), 20)
    stopping = Stopping(drain_seconds=30)
    stopping.ask()
    stopping.ask()
    made = shipper(tmp_path / "traffic", tmp_path / "store", stop=stopping.is_over)
    assert (
        follow(made, stopping, 0.01, lambda *_: None).waiting
        == len(segments(tmp_path / "traffic")) + 1
    )


def test_a_folder_has_one_shipper(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(SettingsError, match="another shipper"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass
