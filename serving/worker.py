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
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from serving.base_model import BaseModel
from serving.batching import Limits, Waiting, next_batch
from serving.engine import Emitted, Engine, Row
from serving.errors import AdapterFailed, GenerationFailed, InvalidRequest, Overloaded, ServingError
from serving.generation import Finished, Job, TokenOut
from serving.lora import LoraWeights, load_lora
from serving.registry import AdapterRef, ForeignAdapter, Registry, RegistryError
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
    """Adapters on their way in, and those that failed lately."""

    pending: dict[AdapterRef, list[asyncio.Future[None]]] = field(default_factory=dict)
    failed: dict[AdapterRef, tuple[float, str]] = field(default_factory=dict)


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
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="adapters")

    # what the HTTP side calls, in its event loop

    async def start(self) -> None:
        """Start the engine's thread."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Stop after the step under way; what still runs or waits fails."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
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
        self._call(lambda: self._want(ref, future))
        await future

    async def unload(self, adapter_id: str) -> None:
        """The adapter is not resident afterwards; rows that began with it finish with it."""
        ref = self._resolve(adapter_id)
        assert ref is not None
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def drop() -> None:
            if ref in self._weights:
                self._evict(ref)
            loop.call_soon_threadsafe(_resolve_future, future, None)

        self._call(drop)
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

    def _call(self, work: Callable[[], None]) -> None:
        """Have the engine's thread do something between two steps."""
        with self._wake:
            self._calls.append(work)
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
            for work in calls:
                work()
            self._drop_cancelled()
            self._admit()
            if self._engine.rows:
                self._step()
        for request in [*self._running.values(), *self._waiting]:
            request.put(GenerationFailed("the server is stopping"))

    def _has_work(self) -> bool:
        """Whether a step, an admission or a cancellation is due; requests that only wait for a load are not work."""
        if self._engine.rows:
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
        for request in waiting:
            if request.ref is not None and request.ref not in self._weights:
                self._want(request.ref, None)
        items = [
            Waiting(
                number,
                len(r.job.prompt_ids),
                len(r.job.prompt_ids) + r.job.sampling.max_new_tokens,
                "ready" if r.ref is None or r.ref in self._weights else "loading",
            )
            for number, r in enumerate(waiting)
        ]
        running_tokens = sum(
            len(row.job.prompt_ids) + row.job.sampling.max_new_tokens for row in self._engine.rows
        )
        for number in next_batch(items, len(self._engine.rows), running_tokens, self._limits):
            request = waiting[number]
            with self._wake, contextlib.suppress(ValueError):
                self._waiting.remove(request)
            self._join(request)

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

    def _hand_over(self, item: Emitted) -> None:
        request = self._running[item.row]
        request.put(item.token)
        if item.finished is not None:
            del self._running[item.row]
            request.put(item.finished)

    # adapters: wanted in the engine's thread, read in the loader's, admitted in the engine's

    def _want(self, ref: AdapterRef, waiter: asyncio.Future[None] | None) -> None:
        """Have an adapter loaded; two that want the same one wait for one load."""
        if ref in self._weights:
            if waiter is not None:
                waiter.get_loop().call_soon_threadsafe(_resolve_future, waiter, None)
            return
        waiters = self._loads.pending.get(ref)
        if waiters is not None:
            waiters += [waiter] if waiter is not None else []
            return
        self._loads.pending[ref] = [waiter] if waiter is not None else []
        self._loader.submit(self._load, ref)

    def _load(self, ref: AdapterRef) -> None:
        """In the loader's thread: read, check, and hand over; a failure is a value here."""
        weights: LoraWeights | None = None
        reason = ""
        try:
            manifest = self._registry.manifest(ref)
            if manifest.base_model_digest != self._base.digest:
                raise ForeignAdapter(
                    f"adapter {ref.id} was made for base model {manifest.base_model} "
                    f"({manifest.base_model_digest}); served is {self._base.id} ({self._base.digest})"
                )
            decoder = self._engine.decoder
            weights = load_lora(
                ref.id, self._registry.open_local(ref), decoder.widths(), decoder.num_layers
            )
        except (RegistryError, OSError, ValueError, KeyError, RuntimeError) as why:
            reason = str(why)
        self._call(lambda: self._loaded(ref, weights, reason))

    def _loaded(self, ref: AdapterRef, weights: LoraWeights | None, reason: str) -> None:
        waiters = self._loads.pending.pop(ref, [])
        now = time.perf_counter()
        if weights is not None:
            in_use = {row.adapter_id for row in self._engine.rows if row.adapter_id is not None}
            plan = self._residency.plan(weights.num_bytes, in_use)
            if plan.refusal is None:
                for adapter_id in plan.evict:
                    self._evict(self._registry_ref(adapter_id))
                self._weights[ref] = weights
                self._residency.admit(ref.id, weights.num_bytes, now)
                self._loads.failed.pop(ref, None)
            else:
                reason = f"adapter {ref.id} {plan.refusal}"
        failure = AdapterFailed(reason) if ref not in self._weights else None
        for waiter in waiters:
            waiter.get_loop().call_soon_threadsafe(_resolve_future, waiter, failure)
        if failure is None:
            return
        logger.warning("adapter %s cannot be loaded: %s", ref.id, reason)
        self._loads.failed[ref] = (now, reason)
        with self._wake:
            failed = [r for r in self._waiting if r.ref == ref]
            self._waiting = deque(r for r in self._waiting if r.ref != ref)
        for request in failed:
            request.put(AdapterFailed(reason))

    @staticmethod
    def _registry_ref(adapter_id: str) -> AdapterRef:
        name, _, version = adapter_id.partition("/")
        return AdapterRef(name, int(version))

    def _evict(self, ref: AdapterRef) -> None:
        del self._weights[ref]
        self._residency.evict(ref.id)
        self._engine.forget(ref.id)


def _resolve_future(future: asyncio.Future[None], failure: Exception | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)
