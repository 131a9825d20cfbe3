"""Reading a shipped log: the same records as from its segments, and no more opened than is asked for."""

import datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from router.columns import batch_of, structs_of
from router.log_layout import hour_of, route_folder, route_of
from router.log_store import LogStore
from router.records import (
    Record,
    dump,
)
from router.traffic import scan, segments
from tests.router.ship_logs import START, record, shipped, stamp, traffic, write


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
