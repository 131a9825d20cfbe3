"""Closed segments to the log store, and away from this disk when they are there and old enough.

The store's own manifests are the only ledger: a segment is shipped when its manifest, which is written after all of its
files, has the segment's size. So a shipper can be killed anywhere and lose its disk besides; the next one finds out what
is missing, and shipping a segment twice replaces its files by equal ones. Opens no policy and asks no router.
"""

import contextlib
import fcntl
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pyarrow as pa

from router.errors import SettingsError
from router.log_layout import Manifest, Part, manifest_path, read_manifest, stored_name
from router.log_store import LogStore, StoreError
from router.parquet_segment import Counts, convert, head_of, index_of
from router.traffic import FEEDBACK, OPEN, segments

logger = logging.getLogger(__name__)

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0
LAST_SWEEP_SECONDS = 10.0
"""What the last sweep may take when it is asked to end: Kubernetes kills after 30 s if nobody says otherwise."""


@dataclass(slots=True)
class Totals:
    """What a shipper has done since it started."""

    segments: int = 0
    records: int = 0
    answers: int = 0
    feedback: int = 0
    unreadable: int = 0
    """Torn or foreign lines, kept out."""
    files: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    deleted: int = 0
    failures: int = 0
    """Segments that could not be shipped at a try; they are tried again."""


@dataclass(slots=True)
class Sweep:
    """What one pass over the folder came to."""

    shipped: int = 0
    waiting: int = 0
    """Closed segments that are not shipped."""
    open: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every closed segment is shipped."""
        return not self.errors and not self.waiting


class Shipper:
    """Ships one folder of segments to one store. One at a time for each folder: see `alone`."""

    def __init__(
        self,
        traffic: Path,
        store: LogStore,
        *,
        keep_seconds: float,
        now: Callable[[], float] = time.time,
        stop: Callable[[], bool] = bool,
        tell: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        """
        Args:
            keep_seconds: a shipped segment stays here until its last write is so long ago.
            stop: asked between files; when true the sweep ends and the rest waits for the next.
            tell: called with segments looked at, and how many there are.
        """
        self.totals = Totals()
        self._traffic = traffic
        self._store = store
        self._keep_seconds = keep_seconds
        self._now = now
        self._stop = stop
        self._tell = tell
        self._shipped: dict[Path, int] = {}
        """Size of segments that are known to be in the store."""

    def sweep(self) -> Sweep:
        """Ship what is closed, delete what is shipped and old. A segment that fails is told of and left for the next."""
        sweep = Sweep()
        found = [*segments(self._traffic), *segments(self._traffic / FEEDBACK)]
        closed = [path for path in found if not path.name.endswith(OPEN)]
        sweep.open = len(found) - len(closed)
        for number, path in enumerate(closed):
            if self._stop():
                sweep.waiting += sum(path not in self._shipped for path in closed[number:])
                break
            self._tell(number, len(closed))
            try:
                sweep.shipped += self._look_at(path)
            except FileNotFoundError:  # somebody took the segment away
                self._shipped.pop(path, None)
            except _Stopped:
                sweep.waiting += 1
            except (StoreError, OSError, pa.ArrowException) as why:
                self.totals.failures += 1
                sweep.waiting += 1
                sweep.errors.append(str(why))
                if isinstance(why, StoreError):  # the next one would meet the same
                    rest = closed[number + 1 :]
                    sweep.waiting += sum(path not in self._shipped for path in rest)
                    break
        self._tell(len(closed), len(closed))
        return sweep

    def _look_at(self, path: Path) -> bool:
        """Ship or delete one segment; whether it was shipped now."""
        size = path.stat().st_size
        was_shipped = self._shipped.get(path) == size
        if not was_shipped:
            name, manifest = self._stored(path)
            was_shipped = manifest is not None and manifest.bytes == size
            if not was_shipped:
                self._ship(path, name, size)
        self._shipped[path] = size
        self._delete_if_old(path, size)
        return not was_shipped

    def _delete_if_old(self, path: Path, size: int) -> None:
        state = path.stat()
        # A sister process may have closed the segment of a writer that still appends: such a one is shipped again.
        if state.st_size == size and self._now() - state.st_mtime >= self._keep_seconds:
            path.unlink()
            self._shipped.pop(path, None)
            self.totals.deleted += 1

    def _stored(self, path: Path) -> tuple[str, Manifest | None]:
        """The segment's name in the store, and its manifest when it is there: its own name, unless another router's
        segment has that already."""
        name = stored_name(path)
        manifest = self._manifest(name)
        head = head_of(path)
        if manifest is None or manifest.head == head:
            return name, manifest
        return f"{name}-{head}", self._manifest(f"{name}-{head}")

    def _manifest(self, name: str) -> Manifest | None:
        return read_manifest(self._store, name)

    def _ship(self, path: Path, name: str, size: int) -> None:
        index = index_of(path, size)
        counts = Counts(unreadable=index.unreadable)
        parts: list[Part] = []
        for part, data in convert(path, index, counts, name, stop=self._stop):
            self._store.put(part.path, data)
            parts.append(part)
        if len(parts) < len(index.places):
            raise _Stopped
        manifest = Manifest(
            name, head_of(path), size, counts.records, counts.answers, counts.feedback,
            counts.unreadable, tuple(parts), self._now(),
        )  # fmt: skip
        self._store.put(manifest_path(name), msgspec.json.encode(manifest))
        if counts.unreadable:
            logger.warning("%s: %d lines are not records and stay out", path, counts.unreadable)
        totals = self.totals
        totals.segments += 1
        totals.records += counts.records
        totals.answers += counts.answers
        totals.feedback += counts.feedback
        totals.unreadable += counts.unreadable
        totals.files += len(parts)
        totals.bytes_read += size
        totals.bytes_written += sum(part.bytes for part in parts)


def is_in(store: LogStore, segment: Path, name: str) -> bool:
    """Whether a segment is in the store under a name, as long as it is here; one that is gone from here was shipped.

    Raises:
        StoreError: the store does not say.
    """
    manifest = read_manifest(store, name)
    try:
        return (
            manifest is not None
            and manifest.bytes == segment.stat().st_size
            and manifest.head == head_of(segment)
        )
    except FileNotFoundError:
        return manifest is not None


class _Stopped(Exception):
    """Asked to stop in the middle of a segment; what is put is put again next time."""


@contextlib.contextmanager
def alone(traffic: Path) -> Iterator[None]:
    """No other shipper works on the folder meanwhile.

    The folder itself is locked, so that a full disk cannot keep a shipper from the work that empties it.

    Raises:
        SettingsError: there is no such folder, or another shipper is at work.
    """
    try:
        handle = os.open(traffic, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as why:
        raise SettingsError(f"{traffic}: no folder of segments: {why.strerror}") from why
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as why:
            raise SettingsError(f"{traffic}: another shipper is at work here") from why
        except OSError as why:  # a network file system without locks
            logger.warning("%s cannot be locked (%s): run one shipper only", traffic, why.strerror)
        yield
    finally:
        os.close(handle)


def wait_seconds(failures: int, draw: float | None = None) -> float:
    """How long to wait after so many failed sweeps in a row: doubling, at most a minute, half of it by chance.

    Args:
        draw: 0-1, random when none is given: shippers of many routers do not come back in one moment.
    """
    longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(failures - 1, 16))
    return longest * (0.5 + 0.5 * (random.random() if draw is None else draw))


class Stopping:
    """Asked to end: once to finish what is closed, twice to stop between two files."""

    def __init__(self, drain_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._drain_seconds = drain_seconds
        self._clock = clock
        self._asked_at: float | None = None
        self._event = threading.Event()
        self._is_forced = False

    def ask(self) -> None:
        """Ask; safe in a signal's handler."""
        self._is_forced = self._asked_at is not None
        self._asked_at = self._asked_at or self._clock()
        self._event.set()

    @property
    def is_asked(self) -> bool:
        """Whether somebody asked."""
        return self._asked_at is not None

    def may_wait(self) -> bool:
        """Whether a router that is ending too may still be waited for."""
        return not self._is_forced and not self._is_past(self._drain_seconds)

    def is_over(self) -> bool:
        """Whether to stop now, done or not."""
        return self._is_forced or self._is_past(self._drain_seconds + LAST_SWEEP_SECONDS)

    def _is_past(self, seconds: float) -> bool:
        return self._asked_at is not None and self._clock() - self._asked_at >= seconds

    def wait(self, seconds: float) -> None:
        """Wait so long, or until somebody asks."""
        self._event.wait(seconds)


def ship_once(
    shipper: Shipper,
    tries: int,
    wait: Callable[[float], None],
    tell: Callable[[Sweep, float], None],
) -> Sweep:
    """Sweep until everything closed is shipped, at most `tries` times with growing waits between.

    Args:
        tell: called after each failed sweep with the seconds until the next.
    """
    for number in range(1, tries):
        sweep = shipper.sweep()
        if not sweep.errors:
            return sweep
        seconds = wait_seconds(number)
        tell(sweep, seconds)
        wait(seconds)
    return shipper.sweep()


def follow(
    shipper: Shipper,
    stopping: Stopping,
    interval_seconds: float,
    tell: Callable[[Sweep, float], None],
) -> Sweep:
    """Sweep again and again until asked to stop, then until the router here has closed its segments; the last sweep.

    Args:
        tell: called after each sweep with the seconds until the next.
    """
    failures = 0
    while not stopping.is_asked:
        sweep = shipper.sweep()
        failures = failures + 1 if sweep.errors else 0
        seconds = wait_seconds(failures) if failures else interval_seconds
        tell(sweep, seconds)
        stopping.wait(seconds)
    while True:
        may_wait = stopping.may_wait()  # asked first: what was closed meanwhile is in the sweep
        sweep = shipper.sweep()
        if not may_wait or stopping.is_over() or (sweep.ok and not sweep.open):
            return sweep
        time.sleep(min(1.0, interval_seconds))
