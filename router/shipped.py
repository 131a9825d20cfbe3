"""Reading a shipped log: records in order of time, their late answers and feedback merged in, as `traffic.scan` gives them.

Only the routes, days and hours that may hold what is asked for are listed, only their row groups that may are read, and
without bodies the columns of the bodies are not fetched. In memory at a time: a row group of each file that covers one
moment, the late answers of three hours that were shipped apart from their request, and all feedback since `since`.
"""

import datetime
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from typing import TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from router.columns import leaves, lists_of, structs_of
from router.lazy_merge import lazily_merged
from router.log_layout import (
    ANSWERS,
    FEEDBACK,
    RECORDS,
    Table,
    date_folder,
    hour_of,
    hour_of_path,
    route_of,
    segment_of,
)
from router.log_store import LogStore
from router.parquet_segment import LATE
from router.records import Feedback, LateAnswer, Record
from router.traffic import LATE_SECONDS, settled

S = TypeVar("S", bound=msgspec.Struct)
Key = tuple[float, str]

BODIES = frozenset({"request", "body"})
_BATCH_ROWS = 512
_OPENERS = 8
"""Files of one hour that are opened at a time: over a network an opening is some waits."""


def scan_shipped(
    store: LogStore,
    feedback: Mapping[str, Sequence[Feedback]],
    *,
    routes: Collection[str] | None = None,
    since: float | None = None,
    until: float | None = None,
    bodies: bool = True,
    late: Iterable[LateAnswer] = (),
    but: Collection[str] = (),
) -> Iterator[Record]:
    """Records of a shipped log, in order of `at`.

    Args:
        feedback: by the request's id.
        routes: only these routes.
        since, until: only records with since <= at < until, epoch seconds.
        bodies: with the bodies of requests and replies.
        late: late answers that are not shipped yet.
        but: segments whose records are left out.

    Raises:
        StoreError: the store cannot be read.
    """
    loose = _Loose(store, routes, since, until, late)
    for hour, paths in _hours(store, RECORDS, routes, since, until):
        loose.move_to(hour)
        chosen = [path for path in paths if segment_of(path) not in but]
        found = _rows_of_hour(store, chosen, since, until, bodies)
        for _, same in groupby(found, key=itemgetter(0)):  # a request that two segments have is one
            rows = [row for _, row in same]
            record = rows[0][0]
            late_lines = [*chain.from_iterable(beside for _, beside in rows), *loose.of(record)]
            yield settled(record, late_lines, feedback.get(record.id, ()), bodies=bodies)


def _hours(
    store: LogStore,
    table: Table,
    routes: Collection[str] | None,
    since: float | None,
    until: float | None,
) -> Iterator[tuple[datetime.datetime, list[str]]]:
    """Hours that have files, in order, with their files; listed day by day."""
    span = (
        datetime.datetime.min.replace(tzinfo=datetime.UTC) if since is None else hour_of(since),
        datetime.datetime.max.replace(tzinfo=datetime.UTC) if until is None else hour_of(until),
    )
    days: dict[str, list[str]] = defaultdict(list)
    for folder in store.folders(table):
        if routes is None or route_of(folder) in routes:
            for date in store.folders(f"{table}/{folder}"):
                if date_folder(span[0]) <= date <= date_folder(span[1]):
                    days[date].append(f"{table}/{folder}/{date}")
    for date in sorted(days):
        by_hour: dict[datetime.datetime, list[str]] = defaultdict(list)
        for path in chain.from_iterable(map(store.files, days[date])):
            by_hour[hour_of_path(path)].append(path)
        for hour in sorted(by_hour):
            if span[0] <= hour <= span[1]:
                yield hour, by_hour[hour]


class _Loose:
    """Late answers that lie apart from their request, of the hours about the one that is read."""

    def __init__(
        self,
        store: LogStore,
        routes: Collection[str] | None,
        since: float | None,
        until: float | None,
        more: Iterable[LateAnswer],
    ) -> None:
        self._store = store
        after = None if since is None else since - LATE_SECONDS
        before = None if until is None else until + LATE_SECONDS
        self._hours = dict(_hours(store, ANSWERS, routes, after, before))
        self._read: dict[datetime.datetime, dict[str, list[LateAnswer]]] = {}
        self._more: dict[str, list[LateAnswer]] = defaultdict(list)
        for line in more:
            self._more[line.id].append(line)

    def move_to(self, hour: datetime.datetime) -> None:
        """Read what is near `hour`, forget what is not."""
        near = [hour + datetime.timedelta(hours=step) for step in (-1, 0, 1)]
        self._read = {
            moment: self._read[moment] if moment in self._read else self._load(moment)
            for moment in near
            if moment in self._hours
        }

    def _load(self, hour: datetime.datetime) -> dict[str, list[LateAnswer]]:
        found: dict[str, list[LateAnswer]] = defaultdict(list)
        for path in self._hours[hour]:
            for line in _all_of(self._store, path, LateAnswer):
                found[line.id].append(line)
        return found

    def of(self, record: Record) -> list[LateAnswer]:
        """Those of one request."""
        found = list(self._more.get(record.id, ()))
        for by_id in self._read.values():
            found += by_id.get(record.id, ())
        return [line for line in found if abs(line.at - record.at) <= LATE_SECONDS]


def feedback_in(store: LogStore, since: float | None) -> Iterator[Feedback]:
    """Feedback on records since a time, of all routes: whoever sends it need not know the route.

    Raises:
        StoreError: the store cannot be read.
    """
    after = None if since is None else since - LATE_SECONDS
    for _, paths in _hours(store, FEEDBACK, None, after, None):
        for path in paths:
            yield from _all_of(store, path, Feedback)


def _all_of(store: LogStore, path: str, kind: type[S]) -> Iterator[S]:
    with store.errors(path), store.open(path) as file, pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS):
            yield from structs_of(kind, batch)


Row = tuple[Record, tuple[LateAnswer, ...]]


def _rows_of_hour(
    store: LogStore, paths: list[str], since: float | None, until: float | None, bodies: bool
) -> Iterator[tuple[Key, Row]]:
    with ThreadPoolExecutor(_OPENERS) as pool:
        parts = list(pool.map(partial(_Part, store), paths))
    sources = [
        ((part.min_at, ""), partial(part.rows, since, until, bodies))
        for part in parts
        if part.may_hold(since, until)
    ]
    return lazily_merged(sources)


class _Part:
    """One file: its footer is read at once, its rows when their time comes."""

    def __init__(self, store: LogStore, path: str) -> None:
        self._store = store
        self._path = path
        with store.errors(path), store.open(path) as file:
            self._footer = pq.read_metadata(file)
        names = [self._footer.schema.column(i).path for i in range(self._footer.num_columns)]
        at = names.index("at")
        groups = [self._footer.row_group(i) for i in range(self._footer.num_row_groups)]
        self._spans = [(s.min, s.max) for g in groups if (s := g.column(at).statistics)]
        self.min_at = min((low for low, _ in self._spans), default=0.0)

    def _groups(self, since: float | None, until: float | None) -> list[int]:
        return [
            number
            for number, (low, high) in enumerate(self._spans)
            if (since is None or high >= since) and (until is None or low < until)
        ]

    def may_hold(self, since: float | None, until: float | None) -> bool:
        """Whether a row group may hold what is asked for."""
        return bool(self._groups(since, until))

    def rows(
        self, since: float | None, until: float | None, bodies: bool
    ) -> Iterator[tuple[Key, Row]]:
        """Rows in order of time."""
        columns = None if bodies else leaves(self._footer.schema.to_arrow_schema(), BODIES)
        with (
            self._store.errors(self._path),
            self._store.open(self._path) as file,
            pq.ParquetFile(file, metadata=self._footer) as parquet,
        ):
            for batch in parquet.iter_batches(
                _BATCH_ROWS, row_groups=self._groups(since, until), columns=columns
            ):
                yield from _rows(batch, since, until)


def _rows(
    batch: pa.RecordBatch, since: float | None, until: float | None
) -> Iterator[tuple[Key, Row]]:
    late = lists_of(LateAnswer, batch.column(LATE))
    for record, beside in zip(structs_of(Record, batch), late, strict=True):
        if (since is None or record.at >= since) and (until is None or record.at < until):
            yield (record.at, record.id), (record, beside)
