"""Requests and tokens a minute of each caller: token buckets that all workers of a router share.

A bucket holds one minute's worth and refills evenly, so a caller may spend a minute's worth at once and then goes on
at the rate. Tokens are known only afterwards: a call is let in while the bucket is above zero, and its cost may push it
below. What is kept of a bucket is the time at which it is full again (the generic cell rate algorithm, ATM Forum 1996).
The buckets lie in one memory-mapped file; they outlive a restart. Several routers (replicas) do not share them: a limit
holds for each replica.
"""

import fcntl
import logging
import mmap
import os
import struct
from hashlib import blake2b
from pathlib import Path

logger = logging.getLogger(__name__)

_SLOT = struct.Struct("<16sd")
"""Which bucket, and the time (seconds since the epoch) at which it is full."""
_SLOTS = 8192
_BYTES = _SLOTS * _SLOT.size
_PROBES = 32
"""Slots that a bucket may lie in. A full bucket needs no slot: it is anybody's."""
MINUTE_SECONDS = 60.0
MAX_DEBT_SECONDS = 600.0
"""No call, and no clock that is set back, shuts a caller out for longer."""


class Buckets:
    """The buckets of all callers. The file is made when the first limit is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._map: mmap.mmap | None = None

    def _slots(self) -> mmap.mmap:
        if self._map is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                os.posix_fallocate(self._fd, 0, _BYTES)  # a hole in a full disk would be a SIGBUS
                self._map = mmap.mmap(self._fd, _BYTES)
            except OSError as why:
                logger.error("%s: %s; limits hold for each worker alone", self._path, why.strerror)
                self._map = mmap.mmap(-1, _BYTES)
        return self._map

    def take(self, bucket: str, per_minute: int, cost: float, now: float) -> float:
        """Take `cost` units out of a bucket that has them; with `cost` 0 only look whether it is above zero.

        Args:
            bucket: its name.
            per_minute: units that it holds, and gets back in a minute.
            now: seconds since the epoch.

        Returns:
            0 when taken, else the seconds until there is enough.
        """
        return self._change(bucket, per_minute, cost, now, always=False)

    def charge(self, bucket: str, per_minute: int, cost: float, now: float) -> None:
        """Take `cost` units whatever is left."""
        self._change(bucket, per_minute, cost, now, always=True)

    def _change(
        self, bucket: str, per_minute: int, cost: float, now: float, *, always: bool
    ) -> float:
        key = blake2b(bucket.encode(), digest_size=16).digest()
        seconds = cost * MINUTE_SECONDS / per_minute
        slots = self._slots()
        # One lock for all slots: it is held for microseconds, and never while waiting for anything else.
        if self._fd is not None:
            fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            at, full_at = _find(slots, key, now)
            empty_for = max(0.0, min(full_at - now, MAX_DEBT_SECONDS))
            wait = empty_for + seconds - MINUTE_SECONDS
            if not always and (wait > 1e-9 or (cost == 0 and wait >= 0)):
                return max(wait, 1e-3)
            if cost:
                filled = now + min(empty_for + seconds, MAX_DEBT_SECONDS)
                _SLOT.pack_into(slots, at * _SLOT.size, key, filled)
            return 0.0
        finally:
            if self._fd is not None:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let the file go."""
        if self._map is not None:
            self._map.close()
        if self._fd is not None:
            os.close(self._fd)
        self._map = self._fd = None


def _find(slots: mmap.mmap, key: bytes, now: float) -> tuple[int, float]:
    """Slot of a bucket and when it is full; the best free slot when it has none."""
    home = int.from_bytes(key[:4]) % _SLOTS
    best = (0.0, home)
    for number, at in enumerate((home + step) % _SLOTS for step in range(_PROBES)):
        owner, full_at = _SLOT.unpack_from(slots, at * _SLOT.size)
        if owner == key:
            return at, full_at
        if number == 0 or full_at < best[0]:
            best = (full_at, at)
        if full_at == 0:  # never used: nothing of ours lies beyond it
            break
    return best[1], now
