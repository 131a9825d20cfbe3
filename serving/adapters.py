"""Adapters of a worker: wanted and made resident in the engine's thread, read in threads of their own between.

    want ─► pending ─► (one at a time) read, check ─► held ─► room? evict, resident

Knows which are resident, on their way or failed lately; knows no requests but the versions they wait for.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

from serving.base_model import BaseModel
from serving.engine import Engine
from serving.errors import AdapterFailed, GenerationFailed
from serving.lookups import Lookups
from serving.lora import LoraWeights, load_lora
from serving.registry import (
    AdapterRef,
    ForeignAdapter,
    Registry,
    RegistryError,
    check_digest,
)
from serving.residency import Residency

logger = logging.getLogger(__name__)

FAILED_LOAD_SECONDS = 5.0
"""A load that failed is not tried again for so long; requests for it fail at once with its reason."""


@dataclass(slots=True)
class Loads:
    """Adapters on their way in, and those that failed lately.

    One is read at a time. When rows use what must go for it, it is held until they end: memory is bounded by the
    budget and one adapter.
    """

    pending: dict[AdapterRef, list[asyncio.Future[None]]] = field(default_factory=dict)
    """Wanted ones, oldest first, with the calls to `load` that wait for them."""
    current: AdapterRef | None = None
    """The one of them that is being read or held."""
    held: LoraWeights | None = None
    failed: dict[AdapterRef, tuple[float, str]] = field(default_factory=dict)


class Adapters:
    """Which adapters are resident, and those on their way. All but `resolve` and `refuse_if_failed`: engine's thread."""

    def __init__(
        self,
        base: BaseModel,
        registry: Registry,
        engine: Engine,
        residency: Residency,
        post: Callable[[Callable[[], None]], None],
        fail: Callable[[AdapterRef, AdapterFailed], None],
    ) -> None:
        """`post` has the engine's thread do something; `fail` ends the requests that wait for a version."""
        self._base = base
        self._registry = registry
        self._lookups = Lookups(registry)
        self._engine = engine
        self._post = post
        self._fail = fail
        self.residency = residency
        self.weights: dict[AdapterRef, LoraWeights] = {}
        self._resident: dict[str, AdapterRef] = {}
        self.loads = Loads()

    def fail_all(self, why: GenerationFailed) -> None:
        """Nobody waits for an adapter any longer."""
        loads, self.loads = self.loads, Loads()
        for waiter in [w for waiters in loads.pending.values() for w in waiters]:
            settle(waiter, why)

    async def resolve(self, adapter_id: str | None) -> AdapterRef | None:
        """The version that an id means. A resident one is known; others are looked up.

        Raises:
            AdapterFailed: none in the registry.
        """
        if adapter_id is None:
            return None
        known = self._resident.get(adapter_id)
        if known is not None:
            return known
        return await self._lookups.resolve(adapter_id)

    def refuse_if_failed(self, ref: AdapterRef | None) -> None:
        """A load that failed lately fails again at once.

        Raises:
            AdapterFailed: with that load's reason.
        """
        found = self.loads.failed.get(ref) if ref is not None else None
        if found is not None and time.perf_counter() - found[0] < FAILED_LOAD_SECONDS:
            raise AdapterFailed(found[1])

    def want(self, ref: AdapterRef, waiter: asyncio.Future[None] | None) -> None:
        """Have an adapter loaded; two that want the same one wait for one load."""
        if ref in self.weights:
            if waiter is not None:
                settle(waiter, None)
            return
        self.loads.pending.setdefault(ref, []).extend([waiter] if waiter is not None else [])

    def load_next(self) -> None:
        """Have the oldest wanted adapter read, unless one is being read or held."""
        loads = self.loads
        if loads.current is None and loads.pending:
            loads.current = next(iter(loads.pending))
            # A thread for each, that ends: one that stays would keep an OpenMP pool beside the engine's (see `launch`).
            threading.Thread(
                target=self._load, args=(loads.current, loads), name="adapter", daemon=True
            ).start()

    def _load(self, ref: AdapterRef, loads: Loads) -> None:
        """In a loader's thread: read, check, and hand over; a failure is a value here."""
        weights: LoraWeights | None = None
        reason = ""
        try:
            weights = self._read(ref)
        except RegistryError as why:
            reason = str(why)
        except Exception as why:  # the loader's outermost: a load that never ends hangs its callers
            logger.exception("adapter %s cannot be read", ref.id)
            reason = f"adapter {ref.id} cannot be read: {type(why).__name__}: {why}"
        self._post(lambda: self._loaded(ref, weights, reason, loads))

    def _read(self, ref: AdapterRef) -> LoraWeights:
        manifest = self._registry.manifest(ref)
        if manifest.base_model_digest != self._base.digest:
            raise ForeignAdapter(
                f"adapter {ref.id} was made for base model {manifest.base_model} "
                f"({manifest.base_model_digest}); served is {self._base.id} ({self._base.digest})"
            )
        folder = self._registry.open_local(ref)
        weights = load_lora(ref.id, folder, self._engine.decoder.places())
        check_digest(ref, folder, manifest.digest)
        return weights

    def _loaded(
        self, ref: AdapterRef, weights: LoraWeights | None, reason: str, loads: Loads
    ) -> None:
        if loads is not self.loads:
            return  # wanted by requests that have failed since
        if weights is None:
            self._load_failed(ref, reason)
            return
        plan = self.residency.plan(weights.num_bytes, frozenset())
        if plan.refusal is not None:  # not even when all rows have ended
            self._load_failed(ref, f"adapter {ref.id} {plan.refusal}")
            return
        loads.held = weights

    def _load_failed(self, ref: AdapterRef, reason: str) -> None:
        logger.warning("adapter %s cannot be loaded: %s", ref.id, reason)
        self.loads.failed[ref] = (time.perf_counter(), reason)
        self._fail(ref, AdapterFailed(reason))
        self._settle_current(AdapterFailed(reason))

    def _settle_current(self, failure: AdapterFailed | None) -> None:
        loads = self.loads
        assert loads.current is not None
        for waiter in loads.pending.pop(loads.current):
            settle(waiter, failure)
        loads.current = loads.held = None

    def place_held(self, waiting: Sequence[AdapterRef | None], running: Set[str]) -> None:
        """Make the adapter that was read resident as soon as no row and no older request needs what must go."""
        ref, weights = self.loads.current, self.loads.held
        if ref is None or weights is None:
            return
        first = _first(waiting, ref)
        if first is None and not self.loads.pending[ref]:
            self._settle_current(None)  # nobody wants it any longer
            return
        in_use = running | {r.id for r in waiting[: first or 0] if r is not None}
        plan = self.residency.plan(weights.num_bytes, in_use)
        if plan.refusal is not None:
            return
        for adapter_id in plan.evict:
            self.evict(self._resident[adapter_id])
        self.weights[ref] = weights
        self._resident[ref.id] = ref
        self.residency.admit(ref.id, weights.num_bytes, time.perf_counter())
        self.loads.failed.pop(ref, None)
        self._settle_current(None)

    def draining(self, waiting: Sequence[AdapterRef | None]) -> set[int]:
        """Numbers of requests that wait although their adapter is resident: it must go for the one that is held.

        Without this, busy adapters would stay for ever and a held one never get in.
        """
        ref, weights = self.loads.current, self.loads.held
        if ref is None or weights is None:
            return set()
        going = self.residency.plan(weights.num_bytes, frozenset()).evict
        first = _first(waiting, ref) or 0
        return {
            number
            for number, r in enumerate(waiting)
            if number >= first and r is not None and r.id in going
        }

    def evict(self, ref: AdapterRef) -> None:
        """An adapter is not resident afterwards; rows that began with it finish with it."""
        del self.weights[ref], self._resident[ref.id]
        self.residency.evict(ref.id)
        self._engine.forget(ref.id)


def _first(waiting: Sequence[AdapterRef | None], ref: AdapterRef) -> int | None:
    """The place in the queue of the oldest request for an adapter."""
    return next((number for number, r in enumerate(waiting) if r == ref), None)


def settle(future: asyncio.Future[None], failure: Exception | None) -> None:
    """End a wait from another thread; a loop that is gone waits for nothing."""
    with contextlib.suppress(RuntimeError):
        future.get_loop().call_soon_threadsafe(_resolve_future, future, failure)


def _resolve_future(future: asyncio.Future[None], failure: Exception | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)
