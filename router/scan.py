"""Reading segments back: records in order of time, what came later merged in.

A segment's lines stand in the order in which they were written, which is that of the requests' ends; and a late answer
stands behind its request by as long as the shadow took. So the reader runs `LATE_SECONDS` ahead of what it gives, and
keeps of the lines between only where they lie: memory does not depend on the size of the requests, nor on the log's.
"""

import heapq
import math
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from router.lazy_merge import lazily_merged
from router.records import Feedback, LateAnswer, Record
from router.segment_index import Entry, entries, line_at
from router.traffic import (
    FEEDBACK,
    LATE_SECONDS,
    closed_name,
    lines,
    may_hold,
    segments,
    settled,
    started_at,
    warn_of,
)


def scan_segments(
    chosen: Iterable[Path],
    feedback: Mapping[str, Sequence[Feedback]],
    *,
    routes: Collection[str] | None = None,
    since: float | None = None,
    until: float | None = None,
    bodies: bool = True,
) -> Iterator[Record]:
    """Records of segments, in order of `at`; a request that took longer than `LATE_SECONDS` comes later.

    Args:
        feedback: by the request's id.
        routes: only these routes.
        since, until: only records with since <= at < until, epoch seconds.
        bodies: with the bodies of requests and replies.
    """
    wanted = [path for path in chosen if may_hold(path, since, until)]
    window = _Window(feedback, bodies)
    for frontier, (file, entry) in _in_order(wanted):
        if routes is None or entry.route in routes:
            if entry.kind == "answer":
                window.add_late(entry, file)
            elif (
                entry.kind == "record"
                and (since is None or entry.at >= since)
                and (until is None or entry.at < until)
            ):
                window.add(entry, file)
        yield from window.ready(frontier - LATE_SECONDS)
    yield from window.ready(math.inf)


def feedback_beside(folder: Path) -> Iterator[Feedback]:
    """All feedback beside a folder's segments."""
    for segment in segments(folder / FEEDBACK):
        for line in lines(segment):
            if isinstance(line, Feedback):
                yield line


def early_answers(chosen: Iterable[Path]) -> Iterator[LateAnswer]:
    """Late answers near the beginning of segments: their request may lie in the segment before."""
    for path in chosen:
        start = started_at(path)
        file = _File.opened(path)
        if file is None:
            continue
        for entry in file.entries():
            if entry.kind == "answer" and (start is None or entry.at <= start + LATE_SECONDS):
                line = line_at(file.handle, entry)
                if isinstance(line, LateAnswer):
                    yield line


class _Window:
    """The lines of the last minutes, as entries."""

    def __init__(self, feedback: Mapping[str, Sequence[Feedback]], bodies: bool) -> None:
        self._feedback = feedback
        self._bodies = bodies
        self._records: list[tuple[float, str, int, Entry, _File]] = []
        self._ids: set[str] = set()
        self._late: dict[str, list[tuple[Entry, _File]]] = {}
        self._late_ids: deque[tuple[float, str]] = deque()
        self._count = 0

    def add(self, entry: Entry, file: "_File") -> None:
        """A request; the second line of one id is the same request."""
        if entry.id not in self._ids:
            self._ids.add(entry.id)
            self._count += 1  # entries and files are never compared
            heapq.heappush(self._records, (entry.at, entry.id, self._count, entry, file))

    def add_late(self, entry: Entry, file: "_File") -> None:
        """An answer, whether or not its request is here yet."""
        self._late.setdefault(entry.id, []).append((entry, file))
        self._late_ids.append((entry.at, entry.id))

    def ready(self, before: float) -> Iterator[Record]:
        """Take out records older than `before`."""
        while self._records and self._records[0][0] < before:
            at, record_id, _, entry, file = heapq.heappop(self._records)
            self._ids.discard(record_id)
            record = line_at(file.handle, entry)
            found = [
                line_at(source.handle, late)
                for late, source in self._late.pop(record_id, ())
                if abs(late.at - at) <= LATE_SECONDS
            ]
            if isinstance(record, Record):
                yield settled(
                    record,
                    [line for line in found if isinstance(line, LateAnswer)],
                    self._feedback.get(record_id, ()),
                    bodies=self._bodies,
                )
            else:
                warn_of(file.path, 1, None)
        # Answers to requests that were not asked for, or are not in the log.
        while self._late_ids and self._late_ids[0][0] < before - LATE_SECONDS:
            self._late.pop(self._late_ids.popleft()[1], None)


class _File:
    """A segment that stays open as long as an entry of it may be read, and closes when nothing holds it any more."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self.handle = handle

    @classmethod
    def opened(cls, path: Path) -> "_File | None":
        """None when there is no such segment any more."""
        for name in (path, closed_name(path)):  # rotated under our eyes: it has its closed name now
            try:
                return cls(name, os.open(name, os.O_RDONLY))
            except FileNotFoundError:
                continue
        return None

    def entries(self) -> Iterator[Entry]:
        """Lines that are records, answers or feedback; the others are logged."""
        bad: list[int] = []
        with os.fdopen(self.handle, "rb", closefd=False) as file:
            for entry in entries(file):
                if isinstance(entry, int):
                    bad.append(entry)
                else:
                    yield entry
        if bad:
            warn_of(self.path, len(bad), bad[0])

    def __del__(self) -> None:
        os.close(self.handle)


Found = tuple[_File, Entry]


def _in_order(chosen: Iterable[Path]) -> Iterator[tuple[float, Found]]:
    """Lines of all segments with the time that the log has come to: no segment but the line's own is behind it."""
    sources: list[tuple[float, Callable[[], Iterator[tuple[float, Found]]]]] = []
    for path in chosen:
        start = started_at(path)
        start = -math.inf if start is None else start
        sources.append((start, partial(_keyed, path)))
    return lazily_merged(sources)


def _keyed(path: Path) -> Iterator[tuple[float, Found]]:
    file = _File.opened(path)
    if file is None:
        return
    newest = -math.inf
    for entry in file.entries():
        newest = max(newest, entry.at)
        yield newest, (file, entry)
