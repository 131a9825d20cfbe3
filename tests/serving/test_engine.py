"""The engine against PEFT: every row of a mixed batch gives what its adapter gives alone, token for token."""

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    LlamaForCausalLM,
)

from serving.engine import Emitted
from serving.errors import (
    InvalidRequest,
)
from serving.generation import Finished, TokenOut
from tests.serving.place import WORDS, Place, job, whole


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_of_a_random_mixed_batch_give_what_their_adapter_gives_alone(
    place: Place, seed: int
) -> None:
    draw = random.Random(seed)
    asked = [
        (
            draw.choice([None, *place.folders]),
            " ".join(draw.choices(WORDS, k=draw.randint(1, 25))),
            draw.randint(1, 14),
        )
        for _ in range(12)
    ]

    async def run() -> list[list[int]]:
        worker = place.worker(max_batch=5, max_prefill_tokens=40)
        await worker.start()
        try:
            jobs = [whole(worker, job(place, text, a, n)) for a, text, n in asked]
            return [[t.id for t in tokens] for tokens, _ in await asyncio.gather(*jobs)]
        finally:
            await worker.stop()

    found = asyncio.run(run())
    wanted = [place.alone(a, place.ids(text), n) for a, text, n in asked]
    assert found == wanted


def test_a_whole_reply_comes_at_once_and_is_the_streamed_one(place: Place) -> None:
    async def run() -> None:
        worker = place.worker()
        await worker.start()
        streamed = job(place, "where is my order", "a1/1", 9, ignore_eos=True)
        found = [await whole(worker, j) for j in (streamed, replace(streamed, at_once=True))]
        assert [t.id for t in found[0][0]] == [t.id for t in found[1][0]]
        assert len(found[0][0]) == 9
        assert found[0][1].text == found[1][1].text
        stream = worker.submit(replace(streamed, at_once=True))
        await anext(stream)
        assert worker.num_running == 0  # its first item comes when it has ended
        await worker.stop()

    asyncio.run(run())


def test_adapters_really_differ(place: Place) -> None:
    prompt = place.ids("where is my order")
    answers = {tuple(place.alone(a, prompt, 8)) for a in [None, *place.folders]}
    assert len(answers) == 5


def test_a_shared_beginning_is_reused_and_changes_nothing(place: Place) -> None:
    shared = "please sort this ticket and answer with the label of it, one word only: "
    texts = [shared + tail for tail in ("refund", "where is my order", "hello world")]

    async def run() -> list[list[int]]:
        worker = place.worker()
        await worker.start()
        found = [await whole(worker, job(place, text, "a1/1")) for text in texts]
        await worker.stop()
        another = job(place, shared + "another", "a1/1")
        stored = worker._engine._prefixes.longest("a1/1", another.prompt_ids)
        assert stored is not None
        # What joins a step is counted without it.
        left = len(another.prompt_ids) - len(stored.ids)
        assert worker._engine.new_tokens(another, "a1/1") == left
        assert worker._engine.new_tokens(another, "a2/1") == len(another.prompt_ids)
        return [[t.id for t in tokens] for tokens, _ in found]

    assert asyncio.run(run()) == [place.alone("a1/1", place.ids(t), 12) for t in texts]


def test_logprobs_are_those_of_the_model(place: Place) -> None:
    async def run() -> list[TokenOut]:
        worker = place.worker()
        await worker.start()
        tokens, _ = await whole(worker, job(place, "hello", None, 4, num_alternatives=3))
        await worker.stop()
        return tokens

    tokens = asyncio.run(run())
    model = LlamaForCausalLM.from_pretrained(place.root / "model").eval()
    ids = list(place.ids("hello"))
    for token in tokens:
        with torch.no_grad():
            wanted = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1], -1)
        assert token.logprob == pytest.approx(float(wanted[token.id]), abs=1e-4)
        assert [a[0] for a in token.alternatives] == wanted.topk(3).indices.tolist()
        ids.append(token.id)


def test_stop_sequences_end_the_text_and_are_in_it(place: Place) -> None:
    async def run() -> Finished:
        worker = place.worker()
        await worker.start()
        _, free = await whole(worker, job(place, "hello", None, 20))
        stop = free.text[2:4]
        _, stopped = await whole(worker, job(place, "hello", None, 20, stop=(stop,)))
        assert stopped.reason == "stop_sequence"
        assert stopped.text == free.text[: free.text.index(stop) + len(stop)]
        await worker.stop()
        return stopped

    asyncio.run(run())


def test_a_seed_gives_the_same_text_again(place: Place) -> None:
    async def run() -> list[str]:
        worker = place.worker()
        await worker.start()
        more = {"do_sample": True, "temperature": 1.5}
        texts = [
            (await whole(worker, job(place, "hello", None, 12, seed=seed, **more)))[1].text
            for seed in (5, 5, 6)
        ]
        await worker.stop()
        return texts

    first, again, other = asyncio.run(run())
    assert first == again
    assert first != other


def test_a_schema_and_a_choice_are_kept(place: Place) -> None:
    async def run() -> tuple[str, str]:
        worker = place.worker()
        await worker.start()
        schema = '{"type":"object","properties":{"a":{"enum":[1,2]}},"required":["a"],"additionalProperties":false}'
        _, one = await whole(worker, job(place, "x", "a0/1", 60, json_schema=schema))
        _, two = await whole(worker, job(place, "x", "a0/1", 60, choices=("refund", "order")))
        await worker.stop()
        return one.text, two.text

    as_json, choice = asyncio.run(run())
    assert as_json.replace(" ", "").replace("\n", "") in ('{"a":1}', '{"a":2}')
    assert choice in ("refund", "order")


def test_a_choice_that_no_tokens_write_is_refused_and_others_go_on(place: Place) -> None:
    """The tiny vocabulary has ASCII alone: after the first letters nothing would be allowed."""

    async def run() -> None:
        worker = place.worker()
        await worker.start()
        with pytest.raises(InvalidRequest, match="choice 'café' cannot be written"):
            await whole(worker, job(place, "x", None, 9, choices=("tea", "café")))
        _, end = await whole(worker, job(place, "x", None, 9, choices=("tea",)))
        assert end.text == "tea"
        await worker.stop()

    asyncio.run(run())


def test_an_end_token_that_is_ignored_is_a_token_like_others(place: Place) -> None:
    """LoRAX's `ignore_eos_token`: generation goes on after it; it is not forbidden."""
    engine = place.worker()._engine
    eos = place.base.tokenizer.eos_token_id
    row = engine.start(job(place, "hello", None, 3, ignore_eos=True), None, None, 0.0)
    engine.add(row)
    step = engine.decoder.step

    def always_eos(ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        logits = step(ids, *rest).clone()
        logits[:, eos] = 1e4
        return logits

    engine.decoder.step = always_eos  # type: ignore[method-assign]
    ends = [engine.step()[0] for _ in range(3)]
    assert row.generated == [eos] * 3
    assert isinstance(ends[-1], Emitted)
    assert ends[-1].finished is not None
    assert (ends[-1].finished.reason, ends[-1].finished.text) == ("length", "")


@pytest.mark.parametrize("leaves", ["the last row", "a row before"])
def test_a_row_reads_nothing_of_the_one_that_had_its_number(place: Place, leaves: str) -> None:
    """Values of finite weights can overflow to NaN too: what a row leaves behind must not reach the next one."""
    engine = place.worker()._engine
    keep = engine.start(job(place, "hello", None, 40, ignore_eos=True), None, None, 0.0)
    gone = engine.start(job(place, "where is my order " * 6, None, 40), None, None, 0.0)
    order = [keep, gone] if leaves == "the last row" else [gone, keep]
    for row in order:
        engine.add(row)
    engine.step()
    for number in range(engine._cache.num_rows):
        if number < 2 and order[number] is gone:
            for layer in range(engine.decoder.num_layers):
                engine._cache.layer(layer)[1, number, :, : gone.cached] = float("nan")
    engine.remove(gone)
    longer = engine.start(job(place, "I want a refund " * 9, None, 40), None, None, 0.0)
    short = engine.start(job(place, "refund", None, 40), None, None, 0.0)
    for row in (short, longer):
        engine.add(row)
    for _ in range(6):
        engine.step()
    assert short.generated == place.alone(None, place.ids("refund"), 6)
    assert keep.generated[:7] == place.alone(None, place.ids("hello"), 7)


def test_an_end_token_is_special_though_the_tokenizer_does_not_call_it_so(place: Place) -> None:
    engine = place.worker()._engine
    (first,) = place.alone(None, place.ids("hello"), 1)
    assert first not in place.base.tokenizer.all_special_ids
    engine.eos_ids = frozenset({first})
    engine.add(engine.start(job(place, "hello", None, 5), None, None, 0.0))
    (emitted,) = engine.step()
    assert isinstance(emitted, Emitted)
    assert (emitted.token.id, emitted.token.special) == (first, True)
    assert emitted.finished is not None
    assert (emitted.finished.reason, emitted.finished.text) == ("eos_token", "")
