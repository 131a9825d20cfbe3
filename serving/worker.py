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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from serving.adapters import Adapters, settle
from serving.base_model import BaseModel
from serving.batching import Limits, Waiting, next_batch
from serving.callers import Item, Request, hand_over
from serving.engine import Emitted, Engine, Failed, Row
from serving.errors import AdapterFailed, GenerationFailed, InvalidRequest, Overloaded, ServingError
from serving.generation import Finished, Job, Step
from serving.memory import give_back
from serving.registry import AdapterRef, Registry
from serving.residency import Residency
from serving.returning import Returning
from serving.settings import WorkerInfo, WorkerSettings
from serving.weights import EMBEDDING, mapped

logger = logging.getLogger(__name__)


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
        self._settings = settings
        embedding = mapped(Path(base.path) / "model.safetensors", EMBEDDING)
        self._engine = Engine(
            base.model,
            base.tokenizer,
            embedding=embedding,
            precision=settings.weights,
            draft_tokens=settings.draft_tokens,
        )
        limit = self._engine.decoder.max_tokens
        total = min(settings.max_total_tokens or limit, limit)
        self.info = WorkerInfo(
            base_model=base.id,
            base_model_digest=base.digest,
            dtype=f"torch.{settings.weights}",
            max_input_length=total - 1,
            max_total_tokens=total,
            max_concurrent_requests=settings.queue + settings.max_batch,
            max_batch_total_tokens=settings.max_batch_total_tokens,
        )
        self._limits = Limits(
            settings.max_batch, settings.max_prefill_tokens, settings.max_batch_total_tokens
        )
        residency = Residency(settings.adapter_memory_bytes, settings.pinned)
        self._adapters = Adapters(
            base, registry, self._engine, residency, self._post, self._fail_adapter
        )
        self._waiting: deque[Request] = deque()
        self._running: dict[Row, Request] = {}
        self._calls: deque[_Call] = deque()
        self._returning = Returning()
        self.on_step: Callable[[Step], None] = lambda _: None
        """Called in the engine's thread after each step."""
        self._wake = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

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

    @property
    def running_tokens(self) -> int:
        """Tokens that the rows in the batch may come to hold."""
        jobs = [row.job for row in list(self._engine.rows)]
        return sum(len(job.prompt_ids) + job.sampling.max_new_tokens for job in jobs)

    def resident(self) -> list[str]:
        """Adapter versions that are loaded, the one used last at the end."""
        return self._adapters.residency.ids()

    async def submit(self, job: Job) -> AsyncIterator[Item]:
        """The generation's tokens, then its end. Closing the iterator frees the row.

        Raises:
            InvalidRequest: the prompt and answer do not fit, with the numbers.
            Overloaded: the queue is full.
            AdapterFailed: no such adapter, or it cannot be loaded.
            GenerationFailed: a step failed.
        """
        request = await self._enqueue(job)
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

    async def resolve(self, adapter_id: str | None) -> AdapterRef | None:
        """The version that an id means now; None for the base model.

        Raises:
            AdapterFailed: from the registry's own error, which says whether the name is unknown.
        """
        return await self._adapters.resolve(adapter_id)

    async def _enqueue(self, job: Job) -> Request:
        total = len(job.prompt_ids) + job.sampling.max_new_tokens
        if not job.prompt_ids:
            raise InvalidRequest("the prompt has no tokens")
        if total > self.info.max_total_tokens:
            raise InvalidRequest(
                f"the prompt has {len(job.prompt_ids)} tokens and {job.sampling.max_new_tokens} are asked for; "
                f"allowed: {self.info.max_total_tokens} together"
            )
        ref = await self._adapters.resolve(job.adapter_id)
        self._adapters.refuse_if_failed(ref)
        if job.sampling.is_constrained:
            await asyncio.to_thread(
                self._engine.grammars.prepare, job.sampling
            )  # not in a step's way
        request = Request(
            job, ref, asyncio.get_running_loop(), asyncio.Queue(), time.perf_counter()
        )
        with self._wake:
            if not self.is_alive or self._stopping:
                raise GenerationFailed("the engine does not run")
            if len(self._waiting) >= self._settings.queue:
                raise Overloaded()
            self._waiting.append(request)
            self._returning.came(request.queued_at)
            self._wake.notify()
        return request

    async def load(self, adapter_id: str) -> None:
        """The adapter is resident afterwards.

        Raises:
            AdapterFailed: it cannot be.
        """
        ref = await self._adapters.resolve(adapter_id)
        assert ref is not None
        self._adapters.refuse_if_failed(ref)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._call(_Call(lambda: self._adapters.want(ref, future), future))
        await future

    async def unload(self, adapter_id: str) -> None:
        """The adapter is not resident afterwards; rows that began with it finish with it."""
        ref = await self._adapters.resolve(adapter_id)
        assert ref is not None
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def drop() -> None:
            if ref in self._adapters.weights:
                self._adapters.evict(ref)
            settle(future, None)

        self._call(_Call(drop, future))
        await future

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
                while not (self._stopping or self._calls):
                    seconds = self._returning.seconds_left(time.perf_counter())
                    if not seconds:
                        break
                    self._wake.wait(seconds)
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
                give_back()
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
        self._adapters.fail_all(why)
        for call in calls:
            if call.waiter is not None:
                settle(call.waiter, why)
        for request in requests:
            request.put(why)

    def _has_work(self) -> bool:
        """Whether a step, an admission or a cancellation is due; requests that only wait for a load are not work."""
        if self._engine.rows or self._adapters.loads.held is not None:
            return True
        return any(
            r.is_cancelled or r.ref is None or r.ref not in self._adapters.loads.pending
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
        refs = [r.ref for r in waiting]
        in_use = {row.adapter_id for row in self._engine.rows if row.adapter_id is not None}
        self._adapters.place_held(refs, in_use)
        for request in waiting:
            if request.ref is not None and request.ref not in self._adapters.weights:
                self._adapters.want(request.ref, None)
        self._adapters.load_next()
        draining = self._adapters.draining(refs)
        items = [
            Waiting(
                number,
                self._engine.new_tokens(r.job, r.ref.id if r.ref is not None else None),
                len(r.job.prompt_ids) + r.job.sampling.max_new_tokens,
                "ready"
                if (r.ref is None or r.ref in self._adapters.weights) and number not in draining
                else "loading",
            )
            for number, r in enumerate(waiting)
        ]
        tokens = self.running_tokens
        for number in next_batch(items, len(self._engine.rows), tokens, self._limits):
            request = waiting[number]
            self._join(request)
            with self._wake, contextlib.suppress(ValueError):
                self._waiting.remove(request)

    def _join(self, request: Request) -> None:
        weights = self._adapters.weights[request.ref] if request.ref is not None else None
        if request.ref is not None:
            self._adapters.residency.touch(request.ref.id, time.perf_counter())
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
        rows = self._engine.rows
        began, num_rows = time.perf_counter(), len(rows)
        num_prompts = sum(not row.generated for row in rows)  # a prompt is computed in one step
        is_failed = False
        try:
            emitted = self._engine.step()
            self._expect(emitted)
            hand_over(emitted, self._running)
        except Exception as why:  # a step must not end the thread that all requests need
            is_failed = True
            logger.exception("a step failed")
            for row in self._engine.clear():
                self._running.pop(row).put(GenerationFailed(f"a step failed: {why}"))
        seconds = time.perf_counter() - began
        self.on_step(Step(num_rows, num_prompts, seconds, is_failed))

    def _expect(self, emitted: Sequence[Emitted | Failed]) -> None:
        """Who is answered by a step may ask again at once.

        Called before the answers go out: who asks again after that is one of those that are waited for.
        """
        ended = [e.finished for e in emitted if isinstance(e, Emitted) and e.finished is not None]
        with self._wake:
            self._returning.answered(
                [each.inference_seconds for each in ended],
                len(self._engine.rows),
                len(self._waiting),
                time.perf_counter(),
            )

    def _post(self, work: Callable[[], None]) -> None:
        """What the loader's thread hands over to the engine's."""
        with self._wake:
            self._calls.append(_Call(work))
            self._wake.notify()

    def _fail_adapter(self, ref: AdapterRef, why: AdapterFailed) -> None:
        with self._wake:
            failed = [r for r in self._waiting if r.ref == ref]
            self._waiting = deque(r for r in self._waiting if r.ref != ref)
        for request in failed:
            request.put(why)
