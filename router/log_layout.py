"""How a shipped log is laid out: which object holds what.

    records/route=NAME/date=2026-11-24/hour=10/SEGMENT.parquet    requests; late answers of the same segment beside them
    answers/route=NAME/date=…/hour=…/SEGMENT.parquet              late answers whose request is in another segment
    feedback/route=NAME/date=…/hour=…/SEGMENT.parquet             what callers said afterwards
    segments/SEGMENT.json                                         written last: all of the segment is there

Hours are UTC and of the line's own time. A segment gives each folder one file of its own name, so that shipping it again
replaces what is there. Route names are percent-encoded, as Hive-style readers (DuckDB, Spark, pyarrow) expect.
"""

import datetime
import logging
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

import msgspec

logger = logging.getLogger(__name__)

Table = Literal["records", "answers", "feedback"]
RECORDS: Table = "records"
ANSWERS: Table = "answers"
FEEDBACK: Table = "feedback"
SEGMENTS = "segments"

_NO_NAME = "__HIVE_DEFAULT_PARTITION__"
HOUR_SECONDS = 3600.0


class Part(msgspec.Struct, frozen=True):
    """One Parquet file of a segment. Times are epoch seconds, both inclusive."""

    path: str
    rows: int
    bytes: int
    min_at: float
    max_at: float


class Manifest(msgspec.Struct, frozen=True):
    """What became of one segment. `bytes` is the segment's size when it was read: one that has grown is shipped again."""

    segment: str
    head: str
    """Hash of the segment's first line: tells apart two routers' segments of one name."""
    bytes: int
    records: int
    answers: int
    feedback: int
    unreadable: int
    """Torn or foreign lines, kept out."""
    parts: tuple[Part, ...] = ()
    shipped_at: float = 0.0
    schema: int = 1


def manifest_path(segment: str) -> str:
    """Where a segment's manifest is."""
    return f"{SEGMENTS}/{segment}.json"


def stored_name(segment: Path) -> str:
    """The name in the store of a segment here, an open one's too: it may be shipped before it is read to its end."""
    kind = "feedback-" if segment.parent.name == FEEDBACK else ""
    return kind + segment.name.removesuffix(".jsonl").removesuffix(".open")


class Reads(Protocol):
    """A store that gives an object's bytes, or None."""

    def get(self, path: str) -> bytes | None:
        """The object, None when there is none."""


def read_manifest(store: Reads, segment: str) -> Manifest | None:
    """A segment's manifest; None when there is none, or an unreadable one: the segment is then shipped again."""
    data = store.get(manifest_path(segment))
    try:
        return None if data is None else msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError:
        logger.warning("%s is no manifest", manifest_path(segment))
        return None


def part_path(table: Table, route: str, hour: datetime.datetime, segment: str) -> str:
    """Where a segment's rows of one route and hour are."""
    return (
        f"{table}/{route_folder(route)}/{date_folder(hour)}/{hour_folder(hour)}/{segment}.parquet"
    )


def hour_of(at: float) -> datetime.datetime:
    """The UTC hour of a time; times that no calendar has (a foreign line's) count as the first hour of 1970."""
    try:
        moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        moment = datetime.datetime.fromtimestamp(0, datetime.UTC)
    return moment.replace(minute=0, second=0, microsecond=0)


def hours(first: datetime.datetime, last: datetime.datetime) -> Iterator[datetime.datetime]:
    """Every hour from `first` to `last`, both included."""
    while first <= last:
        yield first
        first += datetime.timedelta(hours=1)


def route_folder(route: str) -> str:
    """`route=NAME`, percent-encoded."""
    return f"route={urllib.parse.quote(route, safe='') or _NO_NAME}"


def route_of(folder: str) -> str:
    """The route of a `route=NAME` folder."""
    name = folder.removeprefix("route=")
    return "" if name == _NO_NAME else urllib.parse.unquote(name)


def date_folder(hour: datetime.datetime) -> str:
    """`date=YYYY-MM-DD`."""
    return f"date={hour.date().isoformat()}"


def hour_folder(hour: datetime.datetime) -> str:
    """`hour=HH`."""
    return f"hour={hour:%H}"


def hour_of_path(path: str) -> datetime.datetime:
    """The hour of a part's path.

    Raises:
        ValueError: the path is not a part's.
    """
    date, hour = path.split("/")[2:4]
    return datetime.datetime.strptime(f"{date} {hour} +0000", "date=%Y-%m-%d hour=%H %z")


def segment_of(path: str) -> str:
    """The segment that a part came from."""
    return path.rpartition("/")[2].removesuffix(".parquet")
