"""Tokens that are guessed ahead: fewer steps, and the same answers, whether the guesses are right, wrong or partly right."""

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from serving.drafts import CONTEXT, MOST_TRUST, Drafts
from serving.engine import MOST_DRAFTED, Emitted, Engine
from serving.generation import Finished, Job, TokenOut
from serving.launch import _worker
from serving.settings import ServeSettings
from serving.worker import Worker
from tests.serving.place import WORDS, Place, job, whole

Guess = Callable[[str | None, Sequence[int], int], list[int]]


def answered(drafts: Drafts, adapter_id: str | None, answer: Sequence[int], times: int = 1) -> None:
    """An adapter has said an answer, token by token."""
    for _ in range(times):
        for end in range(1, len(answer) + 1):
            drafts.saw(adapter_id, answer[:end])


def test_what_an_adapter_said_before_is_guessed_from_its_first_token_on() -> None:
    drafts = Drafts()
    answered(drafts, "a/1", [5, 6, 7, 2])
    assert drafts.guess("a/1", [5], 8) == [6, 7, 2]
    assert drafts.guess("a/1", [5, 6], 8) == [7, 2]
    assert drafts.guess("a/1", [5], 2) == [6, 7]
    assert drafts.guess("a/1", [6], 8) == []


def test_what_an_adapter_has_not_said_is_guessed_from_the_others_until_it_has() -> None:
    drafts = Drafts()
    answered(drafts, "a/1", [5, 6, 7, 2], times=MOST_TRUST)
    assert drafts.guess("a/2", [5], 8) == [6, 7, 2]
    assert drafts.guess(None, [5], 8) == [6, 7, 2]
    assert drafts.guess("a/2", [], 8) == []  # what its answers begin with is its own matter
    answered(drafts, "a/2", [5, 6, 9])
    assert drafts.guess("a/2", [5], 8) == [6, 9]
    assert drafts.guess("a/1", [5], 8) == [6, 7, 2]


def test_a_long_answer_is_guessed_by_its_last_tokens() -> None:
    drafts = Drafts()
    answered(drafts, None, [1, 2, 3, 4, 5, 6, 7])
    assert drafts.guess(None, [9, 9, 3, 4, 5, 6], 3) == [7]
    assert drafts.guess(None, [9, 9, 9, 4, 5, 6], 3) == []
    assert drafts.guess(None, [3, 4, 5, 6], 3) == [7]
    assert CONTEXT == 4


def test_an_answer_s_first_token_is_guessed_only_when_it_is_the_usual_one() -> None:
    drafts = Drafts()
    answered(drafts, "a/1", [5, 6], times=2)
    assert drafts.guess("a/1", [], 8) == []
    answered(drafts, "a/1", [5, 6])
    assert drafts.guess("a/1", [], 8) == [5, 6]
    answered(drafts, "a/1", [8, 6])
    assert drafts.guess("a/1", [], 8) == []


def test_one_odd_answer_does_not_displace_the_usual_one() -> None:
    drafts = Drafts()
    answered(drafts, "a/1", [5, 6], times=MOST_TRUST + 10)
    for _ in range(MOST_TRUST):
        answered(drafts, "a/1", [5, 9])
        assert drafts.guess("a/1", [5], 1) == [6]
    answered(drafts, "a/1", [5, 9])
    assert drafts.guess("a/1", [5], 1) == [9]


def test_what_was_not_met_for_longest_is_forgotten() -> None:
    drafts = Drafts(most_contexts=3)
    for first in (5, 7, 5, 9):
        answered(drafts, "a/1", [first, 6])
    assert drafts.guess("a/1", [5], 1) == [6]
    assert drafts.guess("a/1", [7], 1) == []
    assert drafts.guess("a/1", [9], 1) == [6]


def asked_of(place: Place, seed: int) -> list[tuple[str | None, str, int]]:
    draw = random.Random(seed)
    return [
        (
            draw.choice([None, *place.folders]),
            " ".join(draw.choices(WORDS, k=draw.randint(1, 20))),
            draw.randint(1, 14),
        )
        for _ in range(10)
    ]


async def answers(worker: Worker, jobs: Sequence[Job]) -> list[tuple[list[TokenOut], Finished]]:
    return await asyncio.gather(*(whole(worker, each) for each in jobs))


@pytest.mark.parametrize("seed", [0, 1])
def test_answers_given_again_are_guessed_and_are_what_the_adapter_gives_alone(
    place: Place, seed: int
) -> None:
    asked = asked_of(place, seed)

    async def run() -> list[list[tuple[list[TokenOut], Finished]]]:
        worker = place.worker(max_batch=5)
        await worker.start()
        rounds = [await answers(worker, [job(place, t, a, n) for a, t, n in asked]) for _ in "123"]
        await worker.stop()
        return rounds

    wanted = [place.alone(a, place.ids(text), n) for a, text, n in asked]
    rounds = asyncio.run(run())
    for found in rounds:
        assert [[t.id for t in tokens] for tokens, _ in found] == wanted
        for tokens, end in found:
            assert end.skipped_tokens == sum(t.skipped for t in tokens)
            assert not tokens[0].skipped
    skipped, generated = (
        sum(getattr(end, key) for _, end in rounds[-1])
        for key in ("skipped_tokens", "generated_tokens")
    )
    assert skipped > generated / 3


def test_an_answer_that_is_nearly_always_the_same_takes_one_step(place: Place) -> None:
    async def run() -> list[Finished]:
        worker = place.worker()
        await worker.start()
        asked = job(place, "hello", "a1/1", 5, ignore_eos=True)
        found = [(await whole(worker, asked))[1] for _ in range(5)]
        await worker.stop()
        return found

    found = asyncio.run(run())
    assert found[0].skipped_tokens == 0
    assert [end.skipped_tokens for end in found[3:]] == [4, 4]
    assert len({end.text for end in found}) == 1


def test_the_servers_setting_reaches_the_engine(place: Place, tmp_path: Path) -> None:
    settings = ServeSettings(str(place.root / "model"), "", tmp_path, draft_tokens=0)
    _, worker = _worker(settings, place.registry, ())
    assert worker._engine._draft_tokens == 0


def exact(known: dict[tuple[str | None, int], list[int]]) -> Guess:
    """Guesses what will be said: `known` holds each adapter's answer by its first token."""

    def guess(adapter_id: str | None, generated: Sequence[int], most: int) -> list[int]:
        answer = known.get((adapter_id, generated[0])) if generated else None
        return answer[len(generated) : len(generated) + most] if answer else []

    return guess


def wrong_at(known: dict[tuple[str | None, int], list[int]], place_of_error: int) -> Guess:
    """The same with one token changed."""
    right = exact(known)

    def guess(adapter_id: str | None, generated: Sequence[int], most: int) -> list[int]:
        found = right(adapter_id, generated, most)
        if place_of_error < len(found):
            found[place_of_error] ^= 1
        return found

    return guess


SCHEMA = '{"type":"object","properties":{"a":{"enum":[11,12]}},"required":["a"],"additionalProperties":false}'
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"do_sample": True, "temperature": 1.3, "seed": 7},
    "penalised": {"repetition_penalty": 1.4, "frequency_penalty": 0.5},
    "alternatives": {"num_alternatives": 3},
    "schema": {"json_schema": SCHEMA},
    "choices": {"choices": ("refund order", "refund")},
    "stop": {"stop": ("e",)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_guesses_change_no_answer_whatever_its_settings(
    place: Place, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    jobs = [
        job(place, text, adapter, 12, **KINDS[kind])
        for text, adapter in (("hello", None), ("where is my order", "a1/1"), ("refund", "a2/1"))
    ]

    async def run(guess: Guess | None) -> list[tuple[list[TokenOut], Finished]]:
        worker = place.worker(**({} if guess else {"draft_tokens": 0}))
        if guess:
            monkeypatch.setattr(worker._engine._drafts, "guess", guess)
        await worker.start()
        found = await answers(worker, jobs)
        await worker.stop()
        return found

    plain = asyncio.run(run(None))
    assert all(end.skipped_tokens == 0 for _, end in plain)
    known = {
        (each.adapter_id, tokens[0].id): [t.id for t in tokens]
        for each, (tokens, _) in zip(jobs, plain, strict=True)
    }
    # A prompt's step gives one token, each step after it one more than the guesses that are right.
    for guess, most in (
        (exact(known), MOST_DRAFTED),
        (wrong_at(known, 0), 0),
        (wrong_at(known, 2), 2),
    ):
        for (tokens, end), (wanted, wanted_end) in zip(asyncio.run(run(guess)), plain, strict=True):
            assert [t.id for t in tokens] == [t.id for t in wanted]
            assert [t.text for t in tokens] == [t.text for t in wanted]
            assert [t.logprob for t in tokens] == pytest.approx(
                [t.logprob for t in wanted], abs=1e-4
            )
            assert [[a[0] for a in t.alternatives] for t in tokens] == [
                [a[0] for a in t.alternatives] for t in wanted
            ]
            assert (end.text, end.reason) == (wanted_end.text, wanted_end.reason)
            assert len(tokens) - end.skipped_tokens == 1 + -(-(len(tokens) - 1) // (most + 1))


def test_a_step_guesses_no_more_than_it_may(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Engine = place.worker(draft_tokens=7)._engine
    asked: list[int] = []

    def guess(adapter_id: str | None, generated: Sequence[int], most: int) -> list[int]:
        asked.append(most)
        return [3] * most

    monkeypatch.setattr(engine._drafts, "guess", guess)
    for _ in range(3):
        engine.add(engine.start(job(place, "hello", None, 20, ignore_eos=True), None, None, 0.0))
    engine.step()
    assert asked == [2, 2, 2]
    for row in list(engine.rows)[1:]:
        engine.remove(row)
    asked.clear()
    engine.step()
    assert asked == [7]
    last = engine.rows[0]
    while len(last.generated) < 18:
        engine.step()
    asked.clear()
    engine.step()  # one more than it says now would be one too many
    assert asked in ([1], [])


@pytest.mark.parametrize("leaves", ["the last row", "a row before"])
def test_what_a_wrong_guess_left_in_the_cache_reaches_nobody(
    place: Place, monkeypatch: pytest.MonkeyPatch, leaves: str
) -> None:
    engine: Engine = place.worker()._engine
    keep = engine.start(job(place, "hello", None, 40, ignore_eos=True), None, None, 0.0)
    gone = engine.start(job(place, "where is my order", None, 40), None, None, 0.0)
    order = [keep, gone] if leaves == "the last row" else [gone, keep]
    for row in order:
        engine.add(row)
    monkeypatch.setattr(engine._drafts, "guess", lambda *_: [9, 9, 9, 9])
    engine.step()
    number = order.index(gone)
    assert gone.written > gone.cached
    for layer in range(engine.decoder.num_layers):
        engine._cache.layer(layer)[:, number, :, gone.cached : gone.written] = float("nan")
    engine.remove(gone)
    monkeypatch.setattr(engine._drafts, "guess", lambda *_: [])
    longer = engine.start(job(place, "I want a refund " * 9, None, 40), None, None, 0.0)
    short = engine.start(job(place, "refund", None, 40), None, None, 0.0)
    for row in (short, longer):
        engine.add(row)
    for _ in range(6):
        engine.step()
    assert short.generated == place.alone(None, place.ids("refund"), 6)
    assert keep.generated[:7] == place.alone(None, place.ids("hello"), 7)


def test_a_row_s_tokens_of_one_step_come_in_order(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Engine = place.worker()._engine
    wanted = place.alone(None, place.ids("hello"), 6)
    monkeypatch.setattr(engine._drafts, "guess", exact({(None, wanted[0]): wanted}))
    row = engine.start(job(place, "hello", None, 6, ignore_eos=True), None, None, 0.0)
    engine.add(row)
    first, rest = engine.step(), engine.step()
    assert len(first) == 1
    emitted = [item for item in (*first, *rest) if isinstance(item, Emitted)]
    assert [item.token.id for item in emitted] == wanted
    assert [item.token.skipped for item in emitted] == [False, False, True, True, True, True]
    assert [item.finished is not None for item in emitted] == [False] * 5 + [True]
    assert not engine.rows
