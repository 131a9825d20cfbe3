"""The traffic log: one line a record, in segments that are only appended to; and reading it back.

A line is on its way to the disk in one `write` before the caller has the last byte, so a killed process loses nothing
that was answered (a power cut may, unless `fsync_seconds` is set). A refused write (disk full) is counted, never
raised: the call goes on. Segments of a folder are read in the order of their names, which begin with their start.

    traffic/20261124T101502.123456-4711.open.jsonl      being written by process 4711
    traffic/20261124T091502.001200-4711.jsonl           closed
"""

import asyncio
import contextlib
import datetime
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from router.records import NO_BODY, Feedback, LateAnswer, Line, Record, dump, load, merge

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
        self._soon: list[bytes] = []
        self._lock = threading.Lock()
        self._records, self._feedback = (
            _Writer(folder, max_bytes, max_age_seconds, fsync_seconds, now)
            for folder in (directory, directory / FEEDBACK)
        )

    def append(self, line: Line) -> bool:
        """Write one line; False, counted and remembered in `last_error`, when the disk refuses it."""
        writer = self._feedback if isinstance(line, Feedback) else self._records
        return self._write(writer, dump(line), 1)

    def append_soon(self, line: LateAnswer) -> None:
        """Write one line at the end of this turn of the event loop, with the others of its kind: nobody waits for it."""
        self._soon.append(dump(line))
        if len(self._soon) == 1:
            asyncio.get_running_loop().call_soon(self._write_those_of_this_turn)

    def _write_those_of_this_turn(self) -> None:
        if self._soon:
            lines, self._soon = self._soon, []
            self._write(self._records, b"".join(lines), len(lines))

    def _write(self, writer: "_Writer", data: bytes, lines: int) -> bool:
        with self._lock:
            try:
                writer.write(data)
            except OSError as why:
                self.dropped += lines
                if self.last_error is None:
                    logger.error("traffic log refuses writes: %s", why)
                self.last_error = f"{self.directory}: {why.strerror}"
                return False
            self.last_error = None
            return True

    def close_old(self) -> None:
        """Close segments that are older than they may be: a quiet router's last lines are shipped too."""
        with self._lock:
            self._records.rotate_if_old()
            self._feedback.rotate_if_old()

    def close(self) -> None:
        """Close the open segments."""
        self._write_those_of_this_turn()
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
        """One line, or several, in one `write`.

        Raises:
            OSError: the disk took nothing, or a part only; the part is ended before the next line.
        """
        now = self._now()
        fd = self._fd
        if fd is None or self._size + len(data) > self._max_bytes or self._is_old(now):
            fd = self._new_segment(now)
        if self._torn:
            data = b"\n" + data
        written = os.write(fd, data)
        self._size += written
        self._torn = written < len(data)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._fsync_seconds is not None and now - self._synced_at >= self._fsync_seconds:
            os.fsync(fd)
            self._synced_at = now

    def rotate(self) -> None:
        """Close the open segment."""
        fd, path = self._fd, self._path
        self._fd = self._path = None
        if fd is not None and path is not None:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):  # somebody took the segment away
                path.rename(closed_name(path))

    def rotate_if_old(self) -> None:
        """Close the open segment when its time is over."""
        if self._is_old(self._now()):
            self.rotate()

    def _is_old(self, now: float) -> bool:
        return now - self._opened_at > self._max_age_seconds

    def _new_segment(self, now: float) -> int:
        """Close the open segment, if it has anything or is old, and begin another."""
        if self._size > 0 or self._is_old(now):
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
            if not path.exists() and not closed_name(path).exists():
                return path
            start += datetime.timedelta(microseconds=1)

    def _close_left_open(self) -> None:
        """Close segments of processes that are gone, so that nobody waits for them."""
        for path in self._directory.glob(f"*{OPEN}"):
            pid = path.name.removesuffix(OPEN).rpartition("-")[2]
            if pid.isdigit() and not _is_writing(int(pid), started_at(path)):
                with contextlib.suppress(FileNotFoundError):  # a sister process was quicker
                    path.rename(closed_name(path))


def closed_name(path: Path) -> Path:
    """What an open segment is called when it is closed."""
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
        closed = closed_name(segment)
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
            warn_of(segment, len(bad), bad[0])


def scan(
    log: Path | str | Sequence[Path | str],
    *,
    routes: Collection[str] | None = None,
    since: float | None = None,
    until: float | None = None,
    bodies: bool = True,
) -> Iterator[Record]:
    """Records in order of time, their late answers and feedback merged in; memory does not grow with the log.

    All feedback is in memory (it is rare and small). A late answer is one that settled within `LATE_SECONDS`.

    Args:
        log: a folder of segments; a shipped log's folder or URL (`s3://…`); or several of them, which are read as one:
            a segment that is shipped already is then read there only.
        routes: only these routes.
        since, until: only records with since <= at < until, epoch seconds.
        bodies: False leaves the bodies of requests and replies out; a shipped log then does not even fetch them.

    Raises:
        SettingsError: the URL is of no known kind.
        StoreError: a shipped log cannot be read.
    """
    from router.logs import scan_logs  # shipped logs need pyarrow, segments do not

    places = [log] if isinstance(log, Path | str) else list(log)
    return scan_logs(places, routes=routes, since=since, until=until, bodies=bodies)


def settled(
    record: Record,
    late: Iterable[LateAnswer],
    feedback: Iterable[Feedback],
    *,
    bodies: bool = True,
) -> Record:
    """The record with what came later, in order of time; a line that came twice counts once."""
    later: list[LateAnswer | Feedback] = [*sorted(late, key=_late_order)]
    later += sorted(feedback, key=lambda line: line.at)
    found: list[LateAnswer | Feedback] = []
    for line in later:
        if line not in found:
            found.append(line)
    if found:
        record = merge(record, found)
    if bodies:
        return record
    answers = tuple(msgspec.structs.replace(a, body=NO_BODY) for a in record.answers)
    return msgspec.structs.replace(record, request=NO_BODY, answers=answers)


def _late_order(line: LateAnswer) -> tuple[float, str, str]:
    return line.at, line.answer.purpose, line.answer.backend


def may_hold(segment: Path, since: float | None, until: float | None) -> bool:
    """Whether a segment may hold records of a time, or late answers to them."""
    start = started_at(segment)
    if start is None:
        return True
    if until is not None and start > until + LATE_SECONDS:
        return False
    try:
        return since is None or segment.stat().st_mtime >= since
    except FileNotFoundError:
        return True


def warn_of(segment: Path, bad: int, first: int | None) -> None:
    """Log that lines of a segment are skipped, and the first one's number where it is known."""
    logger.warning(
        "%s: %d lines are not records and are skipped%s",
        segment, bad, "" if first is None else f", the first is line {first}",
    )  # fmt: skip
