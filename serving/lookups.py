"""What an adapter's name means now, asked of the registry: it may be a bucket, and callers may ask for anything.

Lookups have threads of their own, so that a bucket that does not answer holds up nothing else; who asks for a name that is being
looked up waits for that lookup; a name that was not found is not looked for again at once. Knows no weights.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from serving.errors import AdapterFailed
from serving.registry import AdapterRef, Registry, RegistryError

THREADS = 4
FAILED_LOOKUP_SECONDS = 1.0
"""So late a version that has just been published may be found by who has asked for it before."""
MAX_FAILED = 1024
"""Names are the callers' own words: what is remembered of them is bounded."""


class Lookups:
    """Lookups under way and those that failed lately."""

    def __init__(self, registry: Registry, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lookup")
        self._lock = threading.Lock()
        self._pending: dict[str, Future[AdapterRef]] = {}
        self._failed: OrderedDict[str, tuple[float, RegistryError | OSError]] = OrderedDict()

    async def resolve(self, adapter_id: str) -> AdapterRef:
        """The version that a name means.

        Raises:
            AdapterFailed: from the registry's own error, which says whether the name is unknown.
        """
        try:
            # Shielded: a caller that leaves must not end the lookup that others wait for.
            return await asyncio.shield(asyncio.wrap_future(self._lookup(adapter_id)))
        except (RegistryError, OSError) as why:
            raise AdapterFailed(str(why)) from why

    def _lookup(self, adapter_id: str) -> Future[AdapterRef]:
        with self._lock:
            failed = self._failed.get(adapter_id)
            if failed is not None and self._clock() - failed[0] < FAILED_LOOKUP_SECONDS:
                known: Future[AdapterRef] = Future()
                known.set_exception(failed[1])
                return known
            if adapter_id not in self._pending:
                self._pending[adapter_id] = self._threads.submit(self._ask, adapter_id)
            return self._pending[adapter_id]

    def _ask(self, adapter_id: str) -> AdapterRef:
        try:
            found = self._registry.resolve(adapter_id)
        except (RegistryError, OSError) as why:
            with self._lock:
                self._failed.pop(adapter_id, None)
                self._failed[adapter_id] = (self._clock(), why)
                while len(self._failed) > MAX_FAILED:
                    self._failed.popitem(last=False)
            raise
        finally:
            with self._lock:
                self._pending.pop(adapter_id, None)
        return found
