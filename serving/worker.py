"""Between asyncio and the engine: a bounded queue, adapters loaded beside it, one thread that steps.

    submit ─► queue ─► (adapter: resident? loading?) ─► batching ─► engine.step ─► tokens to the caller's loop

Everything that touches the engine happens in its thread; adapters are read in a loader thread, so that a slow disk
never holds a step up. Knows no HTTP.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from serving.base_model import BaseModel
from serving.batching import Limits, Waiting, next_batch
from serving.engine import Emitted, Engine, Failed, Row
from serving.errors import AdapterFailed, GenerationFailed, InvalidRequest, Overloaded, ServingError
from serving.generation import Finished, Job, TokenOut
from serving.lora import LoraWeights, load_lora
from serving.registry import AdapterRef, ForeignAdapter, Registry, RegistryError, check_digest
from serving.residency import Residency

logger = logging.getLogger(__name__)

FAILED_LOAD_SECONDS = 5.0
"""A load that failed is not tried again for so long; requests for it fail at once with its reason."""

Item = TokenOut | Finished


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How much the worker takes."""

    threads: int | None = None
    """CPU threads of a step; None leaves torch's choice, one for each core."""
    max_batch: int = 32
    queue: int = 256
    """Requests that may wait; above it they are refused."""
    max_total_tokens: int | None = None
    """Prompt and answer together; None takes what the model was made for."""
    max_prefill_tokens: int = 1024
    """Prompt tokens that join in one step."""
    max_batch_total_tokens: int = 65_536
    """Cached tokens of all rows."""
    adapter_memory_bytes: int = 512 << 20
    pinned: frozenset[str] = frozenset()
    """Adapter versions that are never evicted."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What is served, and its limits."""

    base_model: str
    base_model_digest: str
    dtype: str
    max_input_length: int
    max_total_tokens: int
    max_concurrent_requests: int
    max_batch_total_tokens: int


@dataclass(slots=True, eq=False)
class _Request:
    job: Job
    ref: AdapterRef | None
    loop: asyncio.AbstractEventLoop
    items: "asyncio.Queue[Item | ServingError]"
    queued_at: float
    row: Row | None = None
    is_cancelled: bool = False

    def put(self, item: Item | ServingError) -> None:
        """Hand an item to the caller's loop; a loop that is gone wants none."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.items.put_nowait, item)


@dataclass(slots=True)
class _Loads:
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


@dataclass(frozen=True, slots=True)
class _Call:
    """Something to do in the engine's thread, and who waits for it."""

    work: Callable[[], None]
    waiter: asyncio.Future[None] | None = None


class Worker:
    """One base model, its adapters, and the batch."""

    def __init__(self, base: BaseModel, registry: Registry, settings: WorkerSettings) -> None:
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.tokenizer: Any = base.tokenizer
        self._base = base
        self._registry = registry
        self._settings = settings
        self._engine = Engine(base.model, base.tokenizer)
        limit = self._engine.decoder.max_tokens
        total = min(settings.max_total_tokens or limit, limit)
        self.info = WorkerInfo(
            base_model=base.id,
            base_model_digest=base.digest,
            dtype="torch.float32",
            max_input_length=total - 1,
            max_total_tokens=total,
            max_concurrent_requests=settings.queue + settings.max_batch,
            max_batch_total_tokens=settings.max_batch_total_tokens,
        )
        self._limits = Limits(
            settings.max_batch, settings.max_prefill_tokens, settings.max_batch_total_tokens
        )
        self._residency = Residency(settings.adapter_memory_bytes, settings.pinned)
        self._weights: dict[AdapterRef, LoraWeights] = {}
        self._loads = _Loads()
        self._waiting: deque[_Request] = deque()
        self._running: dict[Row, _Request] = {}
        self._calls: deque[_Call] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._loader: ThreadPoolExecutor | None = None

    # what the HTTP side calls, in its event loop

    async def start(self) -> None:
        """Start the engine's thread."""
        self._stopping = False
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="adapters")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Stop after the step under way; what still runs or waits fails."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        if self._loader is not None:
            self._loader.shutdown(wait=False, cancel_futures=True)

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Rows in the batch."""
        return len(self._running)

    def resident(self) -> list[str]:
        """Adapter versions that are loaded, the one used last at the end."""
        return self._residency.ids()

    async def submit(self, job: Job) -> AsyncIterator[Item]:
        """The generation's tokens, then its end. Closing the iterator frees the row.

        Raises:
            InvalidRequest: the prompt and answer do not fit, with the numbers.
            Overloaded: the queue is full.
            AdapterFailed: no such adapter, or it cannot be loaded.
            GenerationFailed: a step failed.
        """
        request = self._enqueue(job)
        try:
            while True:
                item = await request.items.get()
                if isinstance(item, ServingError):
                    raise item
                yield item
                if isinstance(item, Finished):
                    return
        finally:
            request.is_cancelled = True
            with self._wake:
                self._wake.notify()

    def _enqueue(self, job: Job) -> _Request:
        total = len(job.prompt_ids) + job.sampling.max_new_tokens
        if not job.prompt_ids:
            raise InvalidRequest("the prompt has no tokens")
        if total > self.info.max_total_tokens:
            raise InvalidRequest(
                f"the prompt has {len(job.prompt_ids)} tokens and {job.sampling.max_new_tokens} are asked for; "
                f"allowed: {self.info.max_total_tokens} together"
            )
        ref = self._resolve(job.adapter_id)
        self._refuse_if_failed(ref)
        request = _Request(
            job, ref, asyncio.get_running_loop(), asyncio.Queue(), time.perf_counter()
        )
        with self._wake:
            if not self.is_alive or self._stopping:
                raise GenerationFailed("the engine does not run")
            if len(self._waiting) >= self._settings.queue:
                raise Overloaded()
            self._waiting.append(request)
            self._wake.notify()
        return request

    async def load(self, adapter_id: str) -> None:
        """The adapter is resident afterwards.

        Raises:
            AdapterFailed: it cannot be.
        """
        ref = self._resolve(adapter_id)
        assert ref is not None
        self._refuse_if_failed(ref)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._call(_Call(lambda: self._want(ref, future), future))
        await future

    async def unload(self, adapter_id: str) -> None:
        """The adapter is not resident afterwards; rows that began with it finish with it."""
        ref = self._resolve(adapter_id)
        assert ref is not None
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def drop() -> None:
            if ref in self._weights:
                self._evict(ref)
            _settle(future, None)

        self._call(_Call(drop, future))
        await future

    def _resolve(self, adapter_id: str | None) -> AdapterRef | None:
        if adapter_id is None:
            return None
        try:
            return self._registry.resolve(adapter_id)
        except RegistryError as why:
            raise AdapterFailed(str(why)) from why

    def _refuse_if_failed(self, ref: AdapterRef | None) -> None:
        found = self._loads.failed.get(ref) if ref is not None else None
        if found is not None and time.perf_counter() - found[0] < FAILED_LOAD_SECONDS:
            raise AdapterFailed(found[1])

    def _call(self, call: _Call) -> None:
        """Have the engine's thread do something between two steps."""
        with self._wake:
            if not self.is_alive or self._stopping:
                raise GenerationFailed("the engine does not run")
            self._calls.append(call)
            self._wake.notify()

    # the engine's thread

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._stopping or self._calls or self._has_work()):
                    self._wake.wait()
                if self._stopping:
                    break
                calls, self._calls = list(self._calls), deque()
            try:
                for call in calls:
                    call.work()
                self._drop_cancelled()
                self._admit()
                if self._engine.rows:
                    self._step()
            except Exception as why:  # the outermost loop: all requests need this thread
                logger.exception("the engine failed")
                self._fail_all(GenerationFailed(f"the engine failed: {why}"), calls)
        self._fail_all(GenerationFailed("the server is stopping"), [])

    def _fail_all(self, why: GenerationFailed, calls: list[_Call]) -> None:
        """Nobody waits any longer, and nothing is under way."""
        with self._wake:
            requests = [*self._running.values(), *self._waiting]
            calls = [*calls, *self._calls] if self._stopping else calls
            if self._stopping:
                self._calls.clear()
            self._running.clear()
            self._waiting.clear()
        self._engine.clear()
        loads, self._loads = self._loads, _Loads()
        for waiter in [w for waiters in loads.pending.values() for w in waiters]:
            _settle(waiter, why)
        for call in calls:
            if call.waiter is not None:
                _settle(call.waiter, why)
        for request in requests:
            request.put(why)

    def _has_work(self) -> bool:
        """Whether a step, an admission or a cancellation is due; requests that only wait for a load are not work."""
        if self._engine.rows or self._loads.held is not None:
            return True
        return any(
            r.is_cancelled or r.ref is None or r.ref not in self._loads.pending
            for r in self._waiting
        )

    def _drop_cancelled(self) -> None:
        for row, request in list(self._running.items()):
            if request.is_cancelled:
                self._engine.remove(row)
                del self._running[row]
        with self._wake:
            self._waiting = deque(r for r in self._waiting if not r.is_cancelled)

    def _admit(self) -> None:
        """Let waiting requests join whose adapter is there; ask for the adapters of the others."""
        with self._wake:
            waiting = list(self._waiting)
        if self._loads.held is not None:
            self._place_held(waiting)
        for request in waiting:
            if request.ref is not None and request.ref not in self._weights:
                self._want(request.ref, None)
        self._load_next()
        draining = self._draining(waiting)
        items = [
            Waiting(
                number,
                len(r.job.prompt_ids),
                len(r.job.prompt_ids) + r.job.sampling.max_new_tokens,
                "ready"
                if (r.ref is None or r.ref in self._weights) and number not in draining
                else "loading",
            )
            for number, r in enumerate(waiting)
        ]
        running_tokens = sum(
            len(row.job.prompt_ids) + row.job.sampling.max_new_tokens for row in self._engine.rows
        )
        for number in next_batch(items, len(self._engine.rows), running_tokens, self._limits):
            request = waiting[number]
            self._join(request)
            with self._wake, contextlib.suppress(ValueError):
                self._waiting.remove(request)

    def _join(self, request: _Request) -> None:
        weights = self._weights[request.ref] if request.ref is not None else None
        if request.ref is not None:
            self._residency.touch(request.ref.id, time.perf_counter())
        try:
            adapter_id = request.ref.id if request.ref is not None else None
            row = self._engine.start(request.job, weights, adapter_id, request.queued_at)
        except ServingError as why:
            request.put(why)
            return
        except Exception as why:  # whatever one request makes fail is no other request's matter
            logger.exception("a request could not be started")
            request.put(GenerationFailed(f"the request could not be started: {why}"))
            return
        request.row = row
        self._running[row] = request
        self._engine.add(row)

    def _step(self) -> None:
        try:
            emitted = self._engine.step()
        except (
            Exception
        ) as why:  # whatever a step raises must not end the thread that all requests need
            logger.exception("a step failed")
            for row in self._engine.clear():
                self._running.pop(row).put(GenerationFailed(f"a step failed: {why}"))
            return
        for item in emitted:
            self._hand_over(item)

    def _hand_over(self, item: Emitted | Failed) -> None:
        request = self._running[item.row]
        if isinstance(item, Failed):
            del self._running[item.row]
            request.put(item.error)
            return
        request.put(item.token)
        if item.finished is not None:
            del self._running[item.row]
            request.put(item.finished)

    # adapters: wanted in the engine's thread, read in the loader's, admitted in the engine's

    def _want(self, ref: AdapterRef, waiter: asyncio.Future[None] | None) -> None:
        """Have an adapter loaded; two that want the same one wait for one load."""
        if ref in self._weights:
            if waiter is not None:
                _settle(waiter, None)
            return
        self._loads.pending.setdefault(ref, []).extend([waiter] if waiter is not None else [])

    def _load_next(self) -> None:
        """Have the oldest wanted adapter read, unless one is being read or held."""
        loads = self._loads
        if loads.current is None and loads.pending:
            assert self._loader is not None
            loads.current = next(iter(loads.pending))
            self._loader.submit(self._load, loads.current, loads)

    def _load(self, ref: AdapterRef, loads: _Loads) -> None:
        """In the loader's thread: read, check, and hand over; a failure is a value here."""
        weights: LoraWeights | None = None
        reason = ""
        try:
            weights = self._read(ref)
        except RegistryError as why:
            reason = str(why)
        except Exception as why:  # the loader's outermost: a load that never ends hangs its callers
            logger.exception("adapter %s cannot be read", ref.id)
            reason = f"adapter {ref.id} cannot be read: {type(why).__name__}: {why}"
        with self._wake:
            self._calls.append(_Call(lambda: self._loaded(ref, weights, reason, loads)))
            self._wake.notify()

    def _read(self, ref: AdapterRef) -> LoraWeights:
        manifest = self._registry.manifest(ref)
        if manifest.base_model_digest != self._base.digest:
            raise ForeignAdapter(
                f"adapter {ref.id} was made for base model {manifest.base_model} "
                f"({manifest.base_model_digest}); served is {self._base.id} ({self._base.digest})"
            )
        folder, decoder = self._registry.open_local(ref), self._engine.decoder
        weights = load_lora(ref.id, folder, decoder.widths(), decoder.num_layers)
        check_digest(ref, folder, manifest.digest)
        return weights

    def _loaded(
        self, ref: AdapterRef, weights: LoraWeights | None, reason: str, loads: _Loads
    ) -> None:
        if loads is not self._loads:
            return  # wanted by requests that have failed since
        if weights is None:
            self._load_failed(ref, reason)
            return
        plan = self._residency.plan(weights.num_bytes, frozenset())
        if plan.refusal is not None:  # not even when all rows have ended
            self._load_failed(ref, f"adapter {ref.id} {plan.refusal}")
            return
        loads.held = weights

    def _load_failed(self, ref: AdapterRef, reason: str) -> None:
        logger.warning("adapter %s cannot be loaded: %s", ref.id, reason)
        self._loads.failed[ref] = (time.perf_counter(), reason)
        with self._wake:
            failed = [r for r in self._waiting if r.ref == ref]
            self._waiting = deque(r for r in self._waiting if r.ref != ref)
        for request in failed:
            request.put(AdapterFailed(reason))
        self._settle_current(AdapterFailed(reason))

    def _settle_current(self, failure: AdapterFailed | None) -> None:
        loads = self._loads
        assert loads.current is not None
        for waiter in loads.pending.pop(loads.current):
            _settle(waiter, failure)
        loads.current = loads.held = None

    def _place_held(self, waiting: Sequence[_Request]) -> None:
        """Make the adapter that was read resident as soon as no row and no older request needs what must go."""
        ref, weights = self._loads.current, self._loads.held
        assert ref is not None
        assert weights is not None
        first = _first(waiting, ref)
        if first is None and not self._loads.pending[ref]:
            self._settle_current(None)  # nobody wants it any longer
            return
        in_use = {row.adapter_id for row in self._engine.rows if row.adapter_id is not None}
        in_use |= {r.ref.id for r in waiting[: first or 0] if r.ref is not None}
        plan = self._residency.plan(weights.num_bytes, in_use)
        if plan.refusal is not None:
            return
        for adapter_id in plan.evict:
            self._evict(self._registry_ref(adapter_id))
        self._weights[ref] = weights
        self._residency.admit(ref.id, weights.num_bytes, time.perf_counter())
        self._loads.failed.pop(ref, None)
        self._settle_current(None)

    def _draining(self, waiting: Sequence[_Request]) -> set[int]:
        """Numbers of requests that wait although their adapter is resident: it must go for the one that is held.

        Without this, busy adapters would stay for ever and a held one never get in.
        """
        ref, weights = self._loads.current, self._loads.held
        if ref is None or weights is None:
            return set()
        going = self._residency.plan(weights.num_bytes, frozenset()).evict
        first = _first(waiting, ref) or 0
        return {
            number
            for number, r in enumerate(waiting)
            if number >= first and r.ref is not None and r.ref.id in going
        }

    @staticmethod
    def _registry_ref(adapter_id: str) -> AdapterRef:
        name, _, version = adapter_id.partition("/")
        return AdapterRef(name, int(version))

    def _evict(self, ref: AdapterRef) -> None:
        del self._weights[ref]
        self._residency.evict(ref.id)
        self._engine.forget(ref.id)


def _first(waiting: Sequence[_Request], ref: AdapterRef) -> int | None:
    """The place in the queue of the oldest request for an adapter."""
    return next((number for number, r in enumerate(waiting) if r.ref == ref), None)


def _settle(future: asyncio.Future[None], failure: Exception | None) -> None:
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
