"""Segments to Parquet and back: the same records, whatever was killed, refused, doubled or torn on the way."""

import base64
import datetime
import json
import logging
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from router.cli import app
from router.columns import batch_of, structs_of
from router.errors import SettingsError
from router.log_layout import Manifest, hour_of, route_folder, route_of
from router.log_store import LogStore, StoreError
from router.records import (
    NO_BODY,
    Answer,
    Comparison,
    Feedback,
    LateAnswer,
    Line,
    Record,
    ToolCall,
    Usage,
    dump,
)
from router.ship import Shipper, Stopping, Sweep, alone, follow, ship_once, wait_seconds
from router.traffic import FEEDBACK, scan, segments

START = 1_795_514_400.0  # 2026-11-24 10:00 UTC
DAY = 86400.0
ROUTES = ("mail", "chat", "a/b c%", "")


def record(number: int, at: float, route: str = "mail", **more: Any) -> Record:
    reply = Answer("teacher", "up", "big", status=200, text=f"reply {number} ü\u2028", latency_seconds=0.1 + number / 7,
                   usage=Usage(5, number), body=msgspec.Raw(b'{"id": "x",  "n": %d}' % number))  # fmt: skip
    kept = Record(
        f"r{number}", at, route, "dark_launch", "d", "teacher", "teacher", "mode teacher", 200, (reply,),
        request=msgspec.Raw(b'{"messages":[{"role":"user","content":"h\\u00e9 %d"}], "x": 1.0}' % number),
        draw=number / 13 % 1, metadata={"k": f"v{number}", "": "\U0001f600"} if number % 3 else {},
        user=None if number % 2 else "ada",
    )  # fmt: skip
    return msgspec.structs.replace(kept, **more)


def late(number: int, at: float, route: str = "mail", purpose: Any = "shadow") -> LateAnswer:
    calls = (ToolCall("find", '{"q": "ü"}', "c1"), ToolCall("stop")) if number % 2 else ()
    answer = Answer("student", "s", "mail", "mail/3", purpose, 200, f"late {number}", calls, confidence=0.5,
                    body=msgspec.Raw(b"[1, 2]"))  # fmt: skip
    fields = {"label": bool(number % 2)} if number % 4 else {}
    return LateAnswer(
        f"r{number}", at, route, answer, Comparison("json", number % 2 == 0, 0.25, fields)
    )


STRANGE: list[Line] = [
    record(900, START + 1, answers=(), request=NO_BODY),  # a route without text
    record(901, START + 2, request=msgspec.Raw(b'{"m":"[EMAIL] [PHONE]"}')),
    record(902, START + 3, request=msgspec.Raw(b'"' + b"x" * 1_000_000 + b'"')),
    record(903, START + 4, request=msgspec.Raw('{"m":"Grüße \\ud83d\\ude00 漢字"}'.encode())),
    record(904, START + 5, answers=(Answer("teacher", "up", "big", error="timeout"),), served_by="none", status=504),
    record(905, START + 6, feedback=(Feedback("r905", START + 7, "mail", 1.0),), comparison=Comparison("exact", None, comparable=False)),
    record(906, START + 7200, "other", segment="long", conversation="c", caller="team", stream=True, propensity=0.05),
    late(900, START + 9, purpose="audit"), late(901, START + 8), late(901, START + 8.5, purpose="noise"),
    late(77777, START + 9),
]  # fmt: skip


def stamp(at: float) -> str:
    return f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y%m%dT%H%M%S.%f}"


def write(folder: Path, lines: list[Line], size: int, pid: int = 7) -> None:
    """Closed segments of `size` lines each, and feedback in its own."""
    (folder / FEEDBACK).mkdir(parents=True, exist_ok=True)
    said = [line for line in lines if isinstance(line, Feedback)]
    rest = [line for line in lines if not isinstance(line, Feedback)]
    for place, found in ((folder, rest), (folder / FEEDBACK, said)):
        for i in range(0, len(found), size):
            part = found[i : i + size]
            name = f"{stamp(min(line.at for line in part))}-{pid}.jsonl"
            with (place / name).open("ab") as out:
                out.write(b"".join(map(dump, part)))


def traffic(num: int = 120) -> list[Line]:
    """Records of several routes over days, two of three shadowed at once or minutes later, some with feedback."""
    lines: list[tuple[float, Line]] = []
    for number in range(num):
        at = START + number * 97.0
        route = ROUTES[number % 4]
        lines.append((at + number % 5, record(number, at, route)))
        if number % 3:
            settled = at + (2.0 if number % 2 else 480.0)
            lines.append((settled, late(number, settled, route)))
        if number % 10 == 0:
            said = Feedback(f"r{number}", at + DAY, route if number % 20 else "", 0.5, "better ü")
            lines.append((at + DAY, said))
    lines += [(line.at, line) for line in STRANGE]
    return [line for _, line in sorted(lines, key=lambda pair: pair[0])]


def shipper(folder: Path, to: Path | LogStore, **more: Any) -> Shipper:
    store = to if isinstance(to, LogStore) else LogStore(to)
    return Shipper(folder, store, **{"keep_seconds": DAY, **more})


def shipped(folder: Path, to: Path) -> Shipper:
    made = shipper(folder, to)
    assert made.sweep().ok
    return made


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Segments, and the same shipped."""
    root = tmp_path_factory.mktemp("log")
    write(root / "traffic", traffic(), 60)
    shipped(root / "traffic", root / "store")
    return root / "traffic", root / "store"


def test_a_shipped_log_has_the_same_records_in_the_same_order(log: tuple[Path, Path]) -> None:
    local, store = (list(scan(place)) for place in log)
    assert len(local) == 127
    assert [r.id for r in store] == [r.id for r in local]
    assert store == local
    by_id = {r.id: r for r in store}
    assert [a.purpose for a in by_id["r901"].answers] == ["reply", "shadow", "noise"]
    assert by_id["r10"].feedback[0].correction == "better ü"
    assert sum(len(r.answers) == 2 for r in store) > 75


@pytest.mark.parametrize(
    ("routes", "since", "until", "bodies"),
    [
        (None, None, None, False),
        (["mail"], None, None, True),
        (["a/b c%", ""], 3600, 7200, True),
        (None, 3661.5, None, False),
        (["mail", "chat"], None, 5, False),
        (None, 5000, 5000, True),
        ([], None, None, True),
    ],
)
def test_pruned_by_route_time_and_bodies_both_forms_give_the_same(
    log: tuple[Path, Path], routes: Any, since: Any, until: Any, bodies: bool
) -> None:
    span = [None if t is None else START + t for t in (since, until)]
    local, store = (
        list(scan(place, routes=routes, since=span[0], until=span[1], bodies=bodies))
        for place in log
    )
    assert store == local
    assert bodies or not any(r.request or any(a.body for a in r.answers) for r in store)


def test_hours_and_routes_that_are_not_asked_for_are_not_opened(
    log: tuple[Path, Path], tmp_path: Path
) -> None:
    opened: list[str] = []

    class Watched(LogStore):
        def open(self, path: str) -> pa.NativeFile:
            opened.append(path)
            return super().open(path)

    from router.shipped import scan_shipped

    found = list(
        scan_shipped(Watched(log[1]), {}, routes=["chat"], since=START + 3600, until=START + 7200)
    )
    assert found
    records = {path for path in opened if path.startswith("records/")}
    assert len(records) < 6
    assert all(path.startswith("records/route=chat/date=2026-11-24/hour=1") for path in records)


def test_the_store_is_a_plain_dataset_for_others(log: tuple[Path, Path]) -> None:
    table = ds.dataset(log[1] / "records", partitioning="hive", exclude_invalid_files=True)
    found = table.to_table(columns=["id", "route", "date", "late"], filter=ds.field("id") == "r901")
    assert found.num_rows == 1
    assert found["date"].to_pylist() == [datetime.date(2026, 11, 24)] or found[
        "date"
    ].to_pylist() == ["2026-11-24"]
    assert len(found["late"].to_pylist()[0]) == 2


def test_the_manifest_counts_and_times_what_was_shipped(tmp_path: Path) -> None:
    write(tmp_path / "traffic", traffic(20), 1000)
    totals = shipped(tmp_path / "traffic", tmp_path / "store").totals
    (path,) = (tmp_path / "store" / "segments").glob("2*.json")
    manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    assert (manifest.records, manifest.answers) == (totals.records, totals.answers) == (27, 17)
    assert totals.feedback == 2
    assert sum(p.rows for p in manifest.parts if p.path.startswith("records")) == 27
    assert all((tmp_path / "store" / p.path).stat().st_size == p.bytes for p in manifest.parts)


def test_a_second_sweep_and_a_second_shipper_ship_nothing_again(log: tuple[Path, Path]) -> None:
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


def test_a_log_in_two_places_is_read_as_one(tmp_path: Path) -> None:
    lines = traffic(100)
    write(tmp_path / "all", lines, 20)
    write(tmp_path / "traffic", lines, 20)
    everything = segments(tmp_path / "traffic")
    hidden = tmp_path / "later"
    hidden.mkdir()
    for path in everything[-4:]:
        path.rename(hidden / path.name)
    shipped(tmp_path / "traffic", tmp_path / "store")
    for path in everything[:5]:  # deleted here, some are in both places, some only here
        path.unlink()
    for path in hidden.iterdir():
        path.rename(tmp_path / "traffic" / path.name)
    both = list(scan([tmp_path / "store", tmp_path / "traffic"]))
    assert both == list(scan(tmp_path / "all"))


def test_a_segment_that_is_shipped_while_it_is_read_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "traffic", [record(1, START)], 1)
    shipped(tmp_path / "traffic", tmp_path / "store")
    opened = tmp_path / "traffic" / f"{stamp(START + 5)}-9.open.jsonl"
    opened.write_bytes(b"".join(dump(record(n, START + 3600 * n)) for n in range(2, 5)))
    found = scan([tmp_path / "store", tmp_path / "traffic"])
    seen = [next(found)]
    opened.rename(opened.with_name(opened.name.replace(".open", "")))
    shipped(tmp_path / "traffic", tmp_path / "store")
    seen += found
    assert [r.id for r in seen] == ["r1", "r2", "r3", "r4"]


class Killed(BaseException):
    """As a signal would end the process."""


class Dying(LogStore):
    """Dies before or after the n-th put."""

    def __init__(self, url: Path | str, puts: int, after: bool) -> None:
        super().__init__(url)
        self._left, self._after = puts, after

    def put(self, path: str, data: bytes | pa.Buffer) -> None:
        self._left -= 1
        if self._left < 0 and not self._after:
            raise Killed
        super().put(path, data)
        if self._left < 0:
            raise Killed


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


def test_fields_that_a_file_lacks_have_their_defaults() -> None:
    batch = batch_of(Record, [record(1, START), record(2, START)])
    kept = batch.select([n for n in batch.schema.names if n not in ("metadata", "draw", "stream")])
    assert structs_of(Record, kept) == [
        msgspec.structs.replace(record(n, START), metadata={}, draw=0.0) for n in (1, 2)
    ]


@pytest.mark.parametrize("route", ["mail", "", "a/b", "../x", "ü %2F=", "__HIVE", "."])
def test_any_route_name_is_one_folder(route: str) -> None:
    assert "/" not in route_folder(route)
    assert route_of(route_folder(route)) == route


@pytest.mark.parametrize("at", [1e300, -1e300, 253402300800.0])
def test_a_time_that_no_calendar_has_has_an_hour(at: float) -> None:
    assert hour_of(at).year == 1970


# the command

run = CliRunner()


def test_the_command_ships_once_and_prints_counters(tmp_path: Path) -> None:
    write(tmp_path / "traffic", traffic(10), 100)
    args = [
        "ship",
        "--home",
        str(tmp_path),
        "--to",
        str(tmp_path / "store"),
        "--keep",
        "0s",
        "--json",
    ]
    done = run.invoke(app, args)
    shown = json.loads(done.stdout)
    assert done.exit_code == 0, done.output
    assert (shown["ok"], shown["records"], shown["deleted"], shown["waiting"]) == (True, 17, 2, 0)
    assert json.loads(run.invoke(app, args).stdout)["segments"] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--to", "store", "--keep", "7"], "--keep = '7': allowed"),
        (["--to", "nosuch://x/y"], "nosuch://x/y: allowed"),
        (["--to", "s3://a:b@bucket/x"], "keys belong in the environment"),
        (["--to", "s3://bucket/x?regoin=us"], "regoin"),
        (["--to", "store", "--home", "nowhere"], "no folder of segments"),
        (["--to", "home/traffic/store"], "a place outside"),
    ],
)
def test_bad_input_is_exit_status_2_with_what_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home" / "traffic").mkdir(parents=True)
    done = run.invoke(app, ["ship", "--home", "home", *args])
    assert done.exit_code == 2
    assert message in done.stderr.replace("\n", " ")


def test_a_store_that_takes_nothing_is_exit_status_1(tmp_path: Path) -> None:
    write(tmp_path / "traffic", [record(1, START)], 1)
    (tmp_path / "store").write_text("in the way")
    args = ["ship", "--home", str(tmp_path), "--to", str(tmp_path / "store"), "--tries", "1"]
    done = run.invoke(app, args)
    assert done.exit_code == 1
    assert len(segments(tmp_path / "traffic")) == 1


# real processes and a real S3 server

SHIP = [sys.executable, "-m", "graduate", "router", "ship"]


@pytest.mark.slow
def test_killed_at_any_moment_the_next_run_completes_the_log(tmp_path: Path) -> None:
    lines: list[Line] = [record(n, START + n * 0.5, ROUTES[n % 4]) for n in range(20_000)]
    write(tmp_path / "traffic", lines, 1000)
    expected = list(scan(tmp_path / "traffic"))
    args = ["--home", str(tmp_path), "--to", str(tmp_path / "store"), "--keep", "0s"]
    for number in range(8):
        child = subprocess.Popen(
            [*SHIP, *args], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        time.sleep(0.8 + number * 0.15)
        child.kill()
        child.wait()
    subprocess.run([*SHIP, *args], check=True, capture_output=True)
    assert segments(tmp_path / "traffic") == []
    assert list(scan(tmp_path / "store")) == expected
    assert not list((tmp_path / "store").rglob("*.part"))


@pytest.mark.slow
def test_following_ends_gracefully_on_sigterm(tmp_path: Path) -> None:
    write(tmp_path / "traffic", traffic(50), 20)
    args = ["--home", str(tmp_path), "--to", str(tmp_path / "store"), "--follow", "--json"]
    with subprocess.Popen([*SHIP, *args], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["records"] == 57
        write(tmp_path / "traffic", [record(5000, START + DAY)], 1, pid=8)
        child.send_signal(signal.SIGTERM)
        last = json.loads(child.stdout.readlines()[-1])
        assert child.wait(20) == 0
    assert (last["records"], last["ok"]) == (58, True)


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """An S3 server on a free port that can be stopped and started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child: list[subprocess.Popen[bytes]] = []

    def start() -> str:
        child.append(
            subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        import pyarrow.fs as pafs

        pafs.S3FileSystem(
            endpoint_override=f"http://127.0.0.1:{port}",
            region="us-east-1",
            allow_bucket_creation=True,
        ).create_dir("logs")
        return f"s3://logs/graduate?endpoint_override=http://127.0.0.1:{port}&region=us-east-1"

    def stop() -> None:
        child[-1].kill()
        child[-1].wait()

    patch = pytest.MonkeyPatch()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "test")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    yield start, stop
    stop()
    patch.undo()


@pytest.mark.slow
def test_a_bucket_holds_the_same_log_and_an_outage_loses_nothing(tmp_path: Path, s3: Any) -> None:
    start, stop = s3
    url = start()
    noise = base64.b64encode(random.Random(0).randbytes(18 << 20))  # a put of several parts
    large = record(5000, START, "large", request=msgspec.Raw(b'"' + noise + b'"'))
    write(tmp_path / "traffic", [large, *traffic(40)], 40)
    expected = list(scan(tmp_path / "traffic"))
    args = ["ship", "--home", str(tmp_path), "--to", url, "--keep", "0s", "--tries", "1"]
    stop()
    done = run.invoke(app, args)
    assert done.exit_code == 1, done.output
    assert "nothing is lost" in done.stderr
    assert list(scan(tmp_path / "traffic")) == expected
    start()
    store = LogStore(url)
    with pytest.raises(Killed):
        shipper(tmp_path / "traffic", Dying(url, 7, True), keep_seconds=0).sweep()
    assert list(scan([url, tmp_path / "traffic"])) == expected
    done = run.invoke(app, args)
    assert done.exit_code == 0, done.output
    assert segments(tmp_path / "traffic") == []
    assert list(scan(url)) == expected
    some = [r for r in expected if r.route == "a/b c%" and START + 3600 <= r.at < START + 7200]
    assert some
    assert list(scan(url, routes=["a/b c%"], since=START + 3600, until=START + 7200)) == some
    assert store.get("segments/nothing.json") is None
    stop()
    with pytest.raises(StoreError, match="logs"):
        list(scan(url))
    start()
