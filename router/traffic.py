"""The traffic log: one line a record, in segments that are only appended to; and reading it back.

A line is on its way to the disk in one `write` before the caller has the last byte, so a killed process loses nothing
that was answered (a power cut may, unless `fsync_seconds` is set). A refused write (disk full) is counted, never
raised: the call goes on. Segments of a folder are read in the order of their names, which begin with their start.

    traffic/20261124T101502.123456-4711.open.jsonl      being written by process 4711
    traffic/20261124T091502.001200-4711.jsonl           closed
"""

import contextlib
import datetime
import errno
import heapq
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from router.records import Feedback, LateAnswer, Line, Record, dump, load, merge

logger = logging.getLogger(__name__)

OPEN, CLOSED = ".open.jsonl", ".jsonl"
FEEDBACK = "feedback"
LATE_SECONDS = 600.0
"""A late line is looked for in segments that were written up to so long after the record's time."""
_IMPORTED_AT = time.time()
"""No segment of this process is older."""


class TrafficLog:
    """The writer; one for each process. Feedback may come days later, so it has segments of its own in `feedback/`."""

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int = 64 << 20,
        max_age_seconds: float = 3600.0,
        fsync_seconds: float | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self.dropped = 0
        """Lines that the disk refused."""
        self.last_error: str | None = None
        """Why the last write was refused, None when it was not."""
        self._lock = threading.Lock()
        self._records, self._feedback = (
            _Writer(folder, max_bytes, max_age_seconds, fsync_seconds, now)
            for folder in (directory, directory / FEEDBACK)
        )

    def append(self, line: Line) -> bool:
        """Write one line; False, counted and remembered in `last_error`, when the disk refuses it."""
        data = dump(line)
        writer = self._feedback if isinstance(line, Feedback) else self._records
        with self._lock:
            try:
                writer.write(data)
            except OSError as why:
                self.dropped += 1
                if self.last_error is None:
                    logger.error("traffic log refuses writes: %s", why)
                self.last_error = f"{self.directory}: {why.strerror}"
                return False
            self.last_error = None
            return True

    def close(self) -> None:
        """Close the open segments."""
        with self._lock:
            self._records.rotate()
            self._feedback.rotate()


class _Writer:
    """Appends to the newest segment of one folder. Not thread-safe."""

    def __init__(
        self,
        directory: Path,
        max_bytes: int,
        max_age_seconds: float,
        fsync_seconds: float | None,
        now: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._max_age_seconds = max_age_seconds
        self._fsync_seconds = fsync_seconds
        self._now = now
        self._fd: int | None = None
        self._path: Path | None = None
        self._size = 0
        self._opened_at = 0.0
        self._synced_at = 0.0
        self._torn = False
        directory.mkdir(parents=True, exist_ok=True)
        self._close_left_open()

    def write(self, data: bytes) -> None:
        """One line, in one `write`.

        Raises:
            OSError: the disk took nothing, or a part only; the part is ended before the next line.
        """
        fd = self._segment(len(data))
        if self._torn:
            data = b"\n" + data
        written = os.write(fd, data)
        self._size += written
        self._torn = written < len(data)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._fsync_seconds is not None and self._now() - self._synced_at >= self._fsync_seconds:
            os.fsync(fd)
            self._synced_at = self._now()

    def rotate(self) -> None:
        """Close the open segment."""
        fd, path = self._fd, self._path
        self._fd = self._path = None
        if fd is not None and path is not None:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):  # somebody took the segment away
                path.rename(_closed(path))

    def _segment(self, more: int) -> int:
        now = self._now()
        full = self._size + more > self._max_bytes and self._size > 0
        if self._fd is not None and (full or now - self._opened_at > self._max_age_seconds):
            self.rotate()
        if self._fd is None:
            path = self._free_name(datetime.datetime.fromtimestamp(now, datetime.UTC))
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)
            self._path = path
            self._size, self._opened_at, self._torn = 0, now, False
        return self._fd

    def _free_name(self, start: datetime.datetime) -> Path:
        """A name that no segment has or will get: within one microsecond, or with a clock set back, a later one."""
        self._directory.mkdir(parents=True, exist_ok=True)
        while True:
            path = self._directory / f"{start:%Y%m%dT%H%M%S.%f}-{os.getpid()}{OPEN}"
            if not path.exists() and not _closed(path).exists():
                return path
            start += datetime.timedelta(microseconds=1)

    def _close_left_open(self) -> None:
        """Close segments of processes that are gone, so that nobody waits for them."""
        for path in self._directory.glob(f"*{OPEN}"):
            pid = path.name.removesuffix(OPEN).rpartition("-")[2]
            if pid.isdigit() and not _is_writing(int(pid), started_at(path)):
                with contextlib.suppress(FileNotFoundError):  # a sister process was quicker
                    path.rename(_closed(path))


def _closed(path: Path) -> Path:
    return path.with_name(path.name.replace(OPEN, CLOSED))


def _is_writing(pid: int, since: float | None) -> bool:
    if (
        pid == os.getpid()
    ):  # in a container every router is process 1: the one before had our number
        return since is not None and since >= _IMPORTED_AT
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def segments(directory: Path) -> list[Path]:
    """All segments, open ones too, oldest first."""
    return sorted(directory.glob(f"*{CLOSED}"), key=lambda p: p.name)


def started_at(segment: Path) -> float | None:
    """Epoch seconds of a segment's first moment, from its name; None for a name that is not ours."""
    stamp = segment.name.partition("-")[0]
    try:
        return datetime.datetime.strptime(f"{stamp}+0000", "%Y%m%dT%H%M%S.%f%z").timestamp()
    except ValueError:
        return None


def lines(segment: Path) -> Iterator[Line]:
    """The lines of one segment; a torn or foreign line is skipped and logged."""
    try:
        file: BinaryIO = segment.open("rb")
    except FileNotFoundError:  # rotated under our eyes: its closed name is read instead
        closed = _closed(segment)
        if closed == segment or not closed.exists():
            return
        file = closed.open("rb")
    with file:
        bad: list[int] = []
        for number, data in enumerate(file, 1):
            if not data.strip():
                continue
            try:
                yield load(data)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                bad.append(number)
        if bad:
            logger.warning(
                "%s: %d lines are not records and are skipped, the first is line %d",
                segment, len(bad), bad[0],
            )  # fmt: skip


def scan(
    directory: Path | str,
    *,
    routes: Collection[str] | None = None,
    since: float | None = None,
    until: float | None = None,
) -> Iterator[Record]:
    """Records in time order of their segments, their late answers and feedback merged in.

    Records are held back until no late answer can follow, at most `LATE_SECONDS` of traffic, and all feedback is in
    memory (it is rare and small); otherwise memory does not grow with the log.

    Args:
        routes: only these routes.
        since, until: only records with since <= at < until, epoch seconds.
    """
    waiting: dict[str, Record] = {}
    late = _feedback(Path(directory))
    newest = 0.0
    for line in _in_order(Path(directory), since, until):
        newest = max(newest, line.at)
        if isinstance(line, Record):
            if _wanted(line, routes, since, until):
                waiting[line.id] = line
        elif isinstance(line, LateAnswer) and line.id in waiting:
            late.setdefault(line.id, []).append(line)
        yield from _ready(waiting, late, newest - LATE_SECONDS)
    yield from _ready(waiting, late, math.inf)


def _feedback(directory: Path) -> dict[str, list[LateAnswer | Feedback]]:
    found: dict[str, list[LateAnswer | Feedback]] = {}
    for segment in segments(directory / FEEDBACK):
        for line in lines(segment):
            if isinstance(line, Feedback):
                found.setdefault(line.id, []).append(line)
    return found


def _ready(
    waiting: dict[str, Record], late: dict[str, list[LateAnswer | Feedback]], before: float
) -> Iterator[Record]:
    """Take out records older than `before`, what came later laid over them."""
    while waiting:
        oldest = next(iter(waiting.values()))
        if oldest.at > before:
            return
        del waiting[oldest.id]
        yield merge(oldest, late.pop(oldest.id, ()))


def _in_order(directory: Path, since: float | None, until: float | None) -> Iterator[Line]:
    """Lines of all segments that may hold what is asked for. Segments of several workers overlap in time: each is
    merged in by its lines' own times."""
    chosen = [s for s in segments(directory) if _may_hold(s, since, until)]
    return heapq.merge(*(lines(s) for s in chosen), key=lambda line: line.at)


def _may_hold(segment: Path, since: float | None, until: float | None) -> bool:
    start = started_at(segment)
    if start is None:
        return True
    if until is not None and start > until + LATE_SECONDS:
        return False
    try:
        return since is None or segment.stat().st_mtime >= since
    except FileNotFoundError:
        return True


def _wanted(
    record: Record, routes: Collection[str] | None, since: float | None, until: float | None
) -> bool:
    return (
        (routes is None or record.route in routes)
        and (since is None or record.at >= since)
        and (until is None or record.at < until)
    )
