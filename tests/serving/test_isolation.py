"""No row ever gives another adapter's tokens: sixteen adapters and the base in batches of random composition, while callers
leave, adapters fail to load or have to make room, and steps raise."""

import asyncio
import functools
import random
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.errors import AdapterFailed, GenerationFailed
from serving.generation import Finished, TokenOut
from serving.worker import Worker
from tests.serving.place import MODULES, WORDS, Place, job
from tests.tiny import random_adapter

NUM_ADAPTERS = 16
BROKEN = ("foreign", "cut")
TEXTS = [" ".join(random.Random(n).choices(WORDS, k=n % 24 + 1)) for n in range(8)]
COUNT = 10
Fate = Literal["stays", "leaves"]


@dataclass(frozen=True, slots=True)
class Asked:
    """One caller's request; one that leaves does so after `count` tokens."""

    adapter: str | None
    text: str
    count: int
    fate: Fate


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place of its own, with sixteen adapters of two ranks and four sets of modules, and two that cannot be loaded."""
    made = Place(tmp_path_factory.mktemp("crowd"))
    for number in range(len(MODULES), NUM_ADAPTERS):
        modules, rank = MODULES[number % len(MODULES)], (4, 8)[number // 4 % 2]
        folder = random_adapter(
            made.root / "model", made.root / f"a{number}", number, modules, rank
        )
        made.folders[
            made.registry.publish(f"a{number}", folder, made.fields(rank, modules), {}).id
        ] = folder
    plain = made.folders["a0/1"]
    made.registry.publish("foreign", plain, made.fields(4, MODULES[0], "0" * 16), {})
    ref = made.registry.publish("cut", plain, made.fields(4, MODULES[0]), {})
    weights = made.registry.open_local(ref) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    return made


def requests() -> st.SearchStrategy[Asked]:
    adapters = [None, *(f"a{n}/1" for n in range(NUM_ADAPTERS)), *(f"{name}/1" for name in BROKEN)]
    return st.builds(
        Asked,
        st.sampled_from(adapters),
        st.sampled_from(TEXTS),
        st.integers(1, COUNT),
        st.sampled_from(["stays", "stays", "stays", "leaves"]),
    )


def failing(worker: Worker, steps: frozenset[int]) -> None:
    """Have the numbered steps raise, before anything is computed or after the cache was written."""
    step = worker._engine.decoder.step
    made = 0

    def sometimes(*arguments: Any) -> torch.Tensor:
        nonlocal made
        made += 1
        if made in steps and made % 2:
            raise RuntimeError("injected before")
        logits = step(*arguments)
        if made in steps:
            raise RuntimeError("injected after")
        return logits

    worker._engine.decoder.step = sometimes  # type: ignore[assignment, method-assign]


async def follow(worker: Worker, place: Place, asked: Asked) -> tuple[list[int], str]:
    """The tokens that a caller got, and how it ended."""
    tokens: list[int] = []
    wanted = COUNT if asked.fate == "leaves" else asked.count
    items = worker.submit(job(place, asked.text, asked.adapter, wanted, ignore_eos=True))
    try:
        async for item in items:
            if isinstance(item, TokenOut):
                tokens.append(item.id)
            if asked.fate == "leaves" and len(tokens) == asked.count:
                await items.aclose()  # type: ignore[attr-defined]
                return tokens, "left"
            if isinstance(item, Finished):
                assert item.adapter_id == asked.adapter
    except AdapterFailed:
        return tokens, "refused"
    except GenerationFailed:
        return tokens, "failed"
    return tokens, "answered"


STORY = given(
    asked=st.lists(requests(), min_size=6, max_size=24),
    steps=st.frozensets(st.integers(1, 40), max_size=4),
    room=st.integers(2, NUM_ADAPTERS),
    max_batch=st.integers(1, 12),
)


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@STORY
def test_whatever_happens_around_it_a_row_is_what_its_adapter_says_alone(
    crowd: Place, asked: list[Asked], steps: frozenset[int], room: int, max_batch: int
) -> None:
    holds(crowd, asked, steps, room, max_batch)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@STORY
def test_the_same_over_many_drawn_stories(
    crowd: Place, asked: list[Asked], steps: frozenset[int], room: int, max_batch: int
) -> None:
    holds(crowd, asked, steps, room, max_batch)


def holds(
    crowd: Place, asked: list[Asked], steps: frozenset[int], room: int, max_batch: int
) -> None:
    """Every token that a caller got is its adapter's own, and who did not leave was answered or told why not."""

    async def run() -> list[tuple[list[int], str]]:
        worker = crowd.worker(
            max_batch=max_batch, max_prefill_tokens=60,
            adapter_memory_bytes=room * largest(crowd),
        )  # fmt: skip
        failing(worker, steps)
        await worker.start()
        found = await asyncio.wait_for(
            asyncio.gather(*(follow(worker, crowd, each) for each in asked)), 120
        )
        while worker.num_running or worker.num_waiting:
            await asyncio.sleep(0.005)
        await worker.stop()
        return list(found)

    for each, (tokens, ending) in zip(asked, asyncio.run(run()), strict=True):
        if each.adapter is not None and each.adapter.split("/")[0] in BROKEN:
            assert (tokens, ending) == ([], "refused")
            continue
        assert tokens == alone(crowd, each.adapter, each.text)[: len(tokens)]
        assert len(tokens) == each.count or ending == "failed"
        assert ending != "failed" or steps
        assert ending != "refused"


def test_each_of_sixteen_adapters_and_the_base_alone_and_all_together(crowd: Place) -> None:
    everyone = [
        Asked(adapter, text, COUNT, "stays")
        for adapter in [None, *crowd.folders]
        for text in TEXTS[:2]
    ]
    wanted = [alone(crowd, each.adapter, each.text) for each in everyone]
    assert len({tuple(tokens) for tokens in wanted}) > NUM_ADAPTERS  # adapters really differ

    async def run() -> None:
        worker = crowd.worker(max_batch=len(everyone))
        await worker.start()
        one_by_one = [await follow(worker, crowd, each) for each in everyone]
        together = await asyncio.gather(*(follow(worker, crowd, each) for each in everyone))
        await worker.stop()
        assert one_by_one == together == [(tokens, "answered") for tokens in wanted]

    asyncio.run(run())


@functools.cache
def largest(place: Place) -> int:
    return max(place.size(adapter) for adapter in place.folders)


@functools.cache
def alone(place: Place, adapter: str | None, text: str) -> list[int]:
    """What PEFT alone gives, the end token a token like others."""
    ids = list(place.ids(text))
    model = place.reference(adapter)
    with torch.no_grad():
        for _ in range(COUNT):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-COUNT:]
