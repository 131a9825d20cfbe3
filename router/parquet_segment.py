"""One closed segment to Parquet files, one for each kind, route and hour, sorted by time.

A late answer whose request lies in the same segment goes into that request's row (`late`), so that most pairs of student
and teacher are one row; the others get files of their own. Two passes: an index of the lines, then partition by partition
in order of time. Memory: the index, one row group, and one finished file.
"""

import datetime
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from router.columns import batch_of, leaves, schema_of, tuples_of, with_column
from router.log_layout import ANSWERS, FEEDBACK, RECORDS, Part, Table, hour_of, part_path
from router.records import Feedback, LateAnswer, Line, Record
from router.segment_index import Entry, entries, line_at
from router.traffic import LATE_SECONDS

ROW_GROUP_BYTES = 8 << 20
"""JSON bytes in a row group: what a reader holds of each file that it has open."""
_HEAD_BYTES = 1 << 16
_PLAIN = {"id", "at", "request", "body", "text", "draw", "latency_seconds", "first_token_seconds"}
"""Leaves whose values hardly repeat: a dictionary of them is built in vain."""

LATE = "late"
_KINDS: dict[Table, type[Record] | type[LateAnswer] | type[Feedback]] = {
    RECORDS: Record, ANSWERS: LateAnswer, FEEDBACK: Feedback,
}  # fmt: skip

Place = tuple[Table, str, datetime.datetime]
"""What a file holds: kind, route, hour."""


@dataclass(slots=True)
class Index:
    """The lines of one segment by the file that they go to."""

    places: dict[Place, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    late: dict[str, list[Entry]] = field(default_factory=dict)
    """Late answers by the request's id, where that lies in this segment."""
    unreadable: int = 0


@dataclass(slots=True)
class Counts:
    """Lines that were written, and those that turned out to be none."""

    records: int = 0
    answers: int = 0
    feedback: int = 0
    unreadable: int = 0

    def add(self, more: "Counts") -> None:
        """Count these too."""
        self.records += more.records
        self.answers += more.answers
        self.feedback += more.feedback
        self.unreadable += more.unreadable


def head_of(segment: Path) -> str:
    """Hash of the first line.

    Raises:
        OSError: the segment cannot be read.
    """
    with segment.open("rb") as file:
        return hashlib.sha256(file.readline(_HEAD_BYTES)).hexdigest()[:16]


def index_of(segment: Path, size: int) -> Index:
    """Where the lines of the first `size` bytes go.

    Raises:
        OSError: the segment cannot be read.
    """
    found = Index()
    times: dict[str, float] = {}
    late: list[Entry] = []
    with segment.open("rb") as file:
        for entry in entries(file, size):
            if isinstance(entry, int):
                found.unreadable += 1
            elif entry.kind == "answer":
                late.append(entry)
            elif entry.kind == "feedback":
                found.places[FEEDBACK, entry.route, hour_of(entry.at)].append(entry)
            elif entry.id not in times:  # a line that was written twice is one request
                times[entry.id] = entry.at
                found.places[RECORDS, entry.route, hour_of(entry.at)].append(entry)
    for entry in late:
        if entry.id in times and abs(entry.at - times[entry.id]) <= LATE_SECONDS:
            found.late.setdefault(entry.id, []).append(entry)
        else:
            found.places[ANSWERS, entry.route, hour_of(entry.at)].append(entry)
    return found


def convert(
    segment: Path, index: Index, counts: Counts, name: str, *, stop: Callable[[], bool] = bool
) -> Iterator[tuple[Part, pa.Buffer]]:
    """The segment's files, requests' last: a reader that sees a request then also finds its late answers.

    Raises:
        OSError: the segment cannot be read.
    """
    with segment.open("rb") as file:
        for place, found in sorted(index.places.items()):
            if stop():
                return
            found.sort(key=lambda entry: (entry.at, entry.id))
            try:
                new, data = _file(file.fileno(), place[0], found, index.late, pa.string())
            except pa.ArrowInvalid:  # a body that is not UTF-8: kept as bytes
                new, data = _file(file.fileno(), place[0], found, index.late, pa.binary())
            counts.add(new)
            rows = new.records if place[0] == RECORDS else new.answers + new.feedback
            yield Part(part_path(*place, name), rows, data.size, found[0].at, found[-1].at), data


def _file(
    handle: int,
    table: Table,
    found: Sequence[Entry],
    late: dict[str, list[Entry]],
    text: pa.DataType,
) -> tuple[Counts, pa.Buffer]:
    counts = Counts()
    schema = table_schema(table, text)
    sink = pa.BufferOutputStream()
    plain = leaves(schema, _PLAIN)
    with pq.ParquetWriter(
        sink, schema, compression="zstd", compression_level=3, use_dictionary=plain, write_statistics=["at"]
    ) as writer:  # fmt: skip
        for group in _groups(found, late):
            lines = [line for entry in group if (line := _read(handle, entry, counts)) is not None]
            if not lines:
                continue
            if table == RECORDS:
                below = [_late_of(handle, line.id, late, counts) for line in lines]
                writer.write_batch(
                    record_batch([r for r in lines if isinstance(r, Record)], below, text)
                )
            else:
                writer.write_batch(batch_of(_KINDS[table], lines, text))
    return counts, sink.getvalue()


def table_schema(table: Table, text: pa.DataType) -> pa.Schema:
    """Columns of a file of one kind."""
    schema = schema_of(_KINDS[table], text)
    return with_column(schema, LATE, LateAnswer, text) if table == RECORDS else schema


def record_batch(
    records: Sequence[Record], late: Sequence[Sequence[LateAnswer]], text: pa.DataType
) -> pa.RecordBatch:
    """Requests, each with its late answers."""
    batch = batch_of(Record, records, text)
    return pa.RecordBatch.from_arrays(
        [*batch.columns, tuples_of(LateAnswer, late, text)], schema=table_schema(RECORDS, text)
    )


def _groups(found: Sequence[Entry], late: dict[str, list[Entry]]) -> Iterator[list[Entry]]:
    group: list[Entry] = []
    held = 0
    for entry in found:
        group.append(entry)
        held += entry.length + sum(e.length for e in late.get(entry.id, ()))
        if held >= ROW_GROUP_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def _read(handle: int, entry: Entry, counts: Counts) -> Line | None:
    line = line_at(handle, entry)
    if line is None:
        counts.unreadable += 1
    elif isinstance(line, Record):
        counts.records += 1
    elif isinstance(line, LateAnswer):
        counts.answers += 1
    else:
        counts.feedback += 1
    return line


def _late_of(
    handle: int, record_id: str, late: dict[str, list[Entry]], counts: Counts
) -> list[LateAnswer]:
    found = [_read(handle, entry, counts) for entry in late.get(record_id, ())]
    return [line for line in found if isinstance(line, LateAnswer)]
