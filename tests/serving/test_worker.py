"""The worker: limits, callers that leave, and failures that stay with the request they belong to."""

import asyncio
from typing import Any

import pytest
import torch

from serving.errors import (
    GenerationFailed,
    InvalidRequest,
    Overloaded,
)
from serving.generation import Job, Sampling
from tests.serving.place import Place, job, whole


def test_a_step_that_fails_fails_its_rows_and_nothing_else(place: Place) -> None:
    async def run() -> None:
        worker = place.worker()
        await worker.start()
        decoder = worker._engine.decoder
        step = decoder.step

        def broken(*arguments: Any) -> torch.Tensor:
            raise RuntimeError("injected")

        decoder.step = broken  # type: ignore[method-assign]
        with pytest.raises(GenerationFailed, match="injected"):
            await whole(worker, job(place, "hello", "a0/1"))
        decoder.step = step  # type: ignore[method-assign]
        for adapter in (None, "a1/1", "a0/1"):
            tokens, _ = await whole(worker, job(place, "hello", adapter))
            assert [t.id for t in tokens] == place.alone(adapter, place.ids("hello"), 12)
        await worker.stop()

    asyncio.run(run())


def test_a_caller_that_leaves_frees_its_row_and_others_go_on(place: Place) -> None:
    async def run() -> None:
        worker = place.worker(max_batch=2)
        await worker.start()
        leaving = worker.submit(job(place, "hello world", "a3/1", 400, ignore_eos=True))
        await anext(aiter(leaving))
        staying = asyncio.create_task(whole(worker, job(place, "refund", "a2/1", 20)))
        await leaving.aclose()  # type: ignore[attr-defined]
        tokens, _ = await staying
        assert [t.id for t in tokens] == place.alone("a2/1", place.ids("refund"), 20)
        for _ in range(100):
            if worker.num_running == 0:
                break
            await asyncio.sleep(0.01)
        assert worker.num_running == 0
        await worker.stop()

    asyncio.run(run())


def test_limits_are_refused_with_numbers(place: Place) -> None:
    async def run() -> None:
        worker = place.worker(max_batch=1, queue=1, max_total_tokens=64)
        await worker.start()
        with pytest.raises(InvalidRequest, match="allowed: 64 together"):
            await whole(worker, job(place, "hello", None, 64))
        with pytest.raises(InvalidRequest, match="no tokens"):
            await whole(worker, Job((), Sampling(4)))
        long = [worker.submit(job(place, "hello", None, 50, ignore_eos=True)) for _ in range(2)]
        first = asyncio.create_task(anext(aiter(long[0])))
        await first
        second = asyncio.create_task(anext(aiter(long[1])))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await whole(worker, job(place, "hello", None, 4))
        await long[0].aclose()  # type: ignore[attr-defined]
        await second
        await long[1].aclose()  # type: ignore[attr-defined]
        await worker.stop()

    asyncio.run(run())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_fail_their_row_alone(place: Place, value: float) -> None:
    async def run() -> None:
        worker = place.worker()
        await worker.start()
        bad = place.base.tokenizer.encode("x")[0]
        step = worker._engine.decoder.step

        def poisoned(ids: torch.Tensor, *rest: Any) -> torch.Tensor:
            logits = step(ids, *rest).clone()
            for i, place_ in enumerate(rest[3].tolist()):
                if int(ids[place_]) == bad:
                    logits[i, 3] = value
            return logits

        worker._engine.decoder.step = poisoned  # type: ignore[method-assign]
        good = job(place, "hello", None, 12)
        found = await asyncio.gather(
            whole(worker, good),
            whole(worker, job(place, "x", None, do_sample=True, temperature=1.0)),
            whole(worker, job(place, "x", None)),
            return_exceptions=True,
        )
        assert isinstance(found[0], tuple)
        assert [t.id for t in found[0][0]] == place.alone(None, good.prompt_ids, 12)
        assert all(isinstance(f, GenerationFailed) for f in found[1:])
        await worker.stop()

    asyncio.run(run())


def test_a_worker_starts_again(place: Place) -> None:
    async def run() -> None:
        worker = place.worker()
        await worker.start()
        running = asyncio.create_task(
            whole(worker, job(place, "hello", "a0/1", 400, ignore_eos=True))
        )
        while not worker.num_running:
            await asyncio.sleep(0.01)
        await worker.stop()
        with pytest.raises(GenerationFailed, match="stopping"):
            await running
        with pytest.raises(GenerationFailed, match="does not run"):
            await worker.load("a1/1")
        await worker.start()
        tokens, _ = await whole(worker, job(place, "hello", "a1/1"))
        assert [t.id for t in tokens] == place.alone("a1/1", place.ids("hello"), 12)
        await worker.stop()

    asyncio.run(run())


@pytest.mark.parametrize("where", ["_admit", "evict"])
def test_an_error_between_steps_fails_who_waits_and_the_engine_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    async def run() -> None:
        worker = place.worker()
        await worker.start()
        await worker.load("a0/1")

        def broken(*arguments: Any) -> None:
            raise RuntimeError("injected")

        with monkeypatch.context() as patch:
            patch.setattr(worker if where == "_admit" else worker._adapters, where, broken)
            waits = (
                whole(worker, job(place, "hello", "a0/1"))
                if where == "_admit"
                else worker.unload("a0/1")
            )
            with pytest.raises(GenerationFailed, match="injected"):
                await asyncio.wait_for(waits, 10)
        assert worker.is_alive
        tokens, _ = await whole(worker, job(place, "hello", "a0/1"))
        assert [t.id for t in tokens] == place.alone("a0/1", place.ids("hello"), 12)
        await worker.stop()

    asyncio.run(run())


def test_int8_weights_say_so_and_answer_alike_alone_and_together(place: Place) -> None:
    async def run() -> None:
        worker = place.worker(weights="int8")
        assert worker.info.dtype == "torch.int8"
        await worker.start()
        asked = [job(place, "hello", adapter) for adapter in (None, "a0/1", "a1/1", "a3/1")]
        alone = [await whole(worker, one) for one in asked]
        together = await asyncio.gather(*(whole(worker, one) for one in asked))
        found = [
            [[token.id for token in tokens] for tokens, _ in each] for each in (alone, together)
        ]
        assert found[0] == found[1]
        assert len({tuple(ids) for ids in found[0]}) > 1  # adapters matter
        await worker.stop()

    asyncio.run(run())


def test_a_schema_is_compiled_before_its_request_is_queued(place: Place) -> None:
    """A large one takes a second, which no step must wait for: it is refused though no engine runs."""
    asked = job(place, "hello", None, 5, json_schema='{"type": "nonsense"}')
    with pytest.raises(InvalidRequest, match="response_format"):
        asyncio.run(whole(place.worker(), asked))
