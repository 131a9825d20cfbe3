"""What the C library keeps of freed memory: bounded from the start, given back now and then. Does nothing where it cannot."""

import contextlib
import ctypes
import threading
import time

ARENAS = 2
"""Each loading of an adapter is a thread of its own, and glibc gives threads heaps of their own, eight for each processor:
what one thread made and another freed would lie in all of them."""
TRIM_SECONDS = 2.0
"""A prompt's activations and an adapter that is read are megabytes that come and go between things that stay; what lies free among
those is returned this often. It costs some milliseconds. With 10 s it came to 90 MiB where three adapters are read a second."""

_M_ARENA_MAX = -8
_lock = threading.Lock()
_trimmed_at = 0.0


def bound_heaps() -> None:
    """At most `ARENAS` heaps for all threads; to be called before threads are made."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS)


def give_back(*, at_once: bool = False) -> None:
    """What has been freed goes back to the system; not again within `TRIM_SECONDS` unless `at_once`."""
    global _trimmed_at
    with _lock:
        now = time.monotonic()
        if not at_once and now - _trimmed_at < TRIM_SECONDS:
            return
        _trimmed_at = now
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
