"""lorax-client 0.6.3 against a running server: what it sends is understood, what it gets it can read."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import lorax
import pytest
from lorax import errors

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")


@pytest.fixture
def client(server: Any) -> lorax.Client:
    return lorax.Client(server.url, timeout=20)


def test_generate(client: lorax.Client, server: Any) -> None:
    reply = client.generate("hello world", max_new_tokens=6, ignore_eos_token=True)
    assert reply.details is not None
    assert reply.details.generated_tokens == 6 == len(reply.details.tokens)
    assert reply.details.finish_reason == "length"
    assert reply.generated_text == "".join(t.text for t in reply.details.tokens if not t.special)
    again = client.generate("hello world", max_new_tokens=6, ignore_eos_token=True, details=False)
    assert again.details is None
    assert again.generated_text == reply.generated_text


def test_an_adapter_changes_the_answer(client: lorax.Client, server: Any) -> None:
    base = client.generate("hello world", max_new_tokens=8, ignore_eos_token=True)
    texts = {base.generated_text}
    for adapter in server.adapters:
        reply = client.generate(
            "hello world", adapter_id=adapter, max_new_tokens=8, ignore_eos_token=True
        )
        texts.add(reply.generated_text)
    assert len(texts) > 1


def test_a_stream_is_the_whole_reply_in_pieces(client: lorax.Client, server: Any) -> None:
    adapter = server.adapters[0]
    whole = client.generate("hello", adapter_id=adapter, max_new_tokens=5, ignore_eos_token=True)
    events = list(
        client.generate_stream("hello", adapter_id=adapter, max_new_tokens=5, ignore_eos_token=True)
    )
    assert whole.details is not None
    assert [e.token.id for e in events] == [t.id for t in whole.details.tokens]
    assert [e.generated_text for e in events] == [None] * 4 + [whole.generated_text]
    assert events[-1].details is not None
    assert events[-1].details.generated_tokens == 5


def test_prompt_details_alternatives_and_best_of(client: lorax.Client) -> None:
    reply = client.generate(
        "hello world",
        max_new_tokens=3,
        ignore_eos_token=True,
        decoder_input_details=True,
        return_k_alternatives=2,
        return_full_text=True,
    )
    assert reply.generated_text.startswith("hello world")
    assert reply.details is not None
    assert len(reply.details.prefill) == reply.details.prompt_tokens
    assert reply.details.prefill[0].logprob is None
    for token in reply.details.tokens:
        assert token.alternative_tokens is not None
        assert len(token.alternative_tokens) == 2
        assert token.logprob == pytest.approx(token.alternative_tokens[0].logprob, abs=1e-4)
    best = client.generate(
        "hello", max_new_tokens=4, do_sample=True, temperature=1.5, best_of=2, ignore_eos_token=True
    )
    assert best.details is not None
    assert best.details.best_of_sequences is not None
    (other,) = best.details.best_of_sequences
    assert sum(t.logprob for t in best.details.tokens) >= sum(t.logprob for t in other.tokens)


def test_a_seed_repeats_a_sampled_answer(client: lorax.Client) -> None:
    def ask(seed: int) -> str:
        reply = client.generate(
            "hello",
            max_new_tokens=8,
            do_sample=True,
            temperature=2.0,
            seed=seed,
            ignore_eos_token=True,
        )
        assert reply.details is not None
        assert reply.details.seed == seed
        return reply.generated_text

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(6)}) > 1


def test_a_stop_sequence_stays_in_the_native_answer(client: lorax.Client) -> None:
    whole = client.generate("hello", max_new_tokens=8, ignore_eos_token=True)
    assert whole.details is not None
    stop = next(t.text for t in whole.details.tokens[1:] if t.text.strip())
    reply = client.generate("hello", max_new_tokens=8, stop_sequences=[stop], ignore_eos_token=True)
    assert reply.details is not None
    assert reply.details.finish_reason == "stop_sequence"
    assert reply.generated_text.endswith(stop)
    assert whole.generated_text.startswith(reply.generated_text)


TOO_LONG = "hello " * 5000


@pytest.mark.parametrize(
    ("call", "error", "part"),
    [
        pytest.param(
            lambda c: c.generate(TOO_LONG, max_new_tokens=1),
            errors.ValidationError, "Input validation error: `inputs`", id="a prompt that is too long",
        ),
        pytest.param(
            lambda c: c.generate("x", stop_sequences=list("abcdefgh")),
            errors.ValidationError, "`stop` supports up to 4", id="too many stop sequences",
        ),
        pytest.param(
            lambda c: c.generate("x", adapter_id="nobody/1", max_new_tokens=1),
            errors.GenerationError, "Request failed during generation: Server error:", id="an unknown adapter",
        ),
        pytest.param(
            lambda c: c.generate("x", adapter_id="../../etc", max_new_tokens=1),
            errors.GenerationError, "Server error", id="a path out of the registry",
        ),
        pytest.param(
            lambda c: list(c.generate_stream("x", adapter_id="nobody/1", max_new_tokens=1)),
            errors.GenerationError, "nobody", id="an unknown adapter in a stream",
        ),
        pytest.param(
            lambda c: list(c.generate_stream(TOO_LONG, max_new_tokens=1)),
            errors.ValidationError, "`inputs`", id="a prompt that is too long, in a stream",
        ),
    ],
)  # fmt: skip
def test_failures_are_the_clients_own_classes(
    client: lorax.Client, call: Callable[[lorax.Client], object], error: type[Exception], part: str
) -> None:
    with pytest.raises(error) as caught:
        call(client)
    assert part in str(caught.value)


def test_a_full_queue_is_overloaded(crowded_server: Any) -> None:
    async def story() -> list[object]:
        client = lorax.AsyncClient(crowded_server.url, timeout=1)
        calls = [
            client.generate("hello", max_new_tokens=60, ignore_eos_token=True) for _ in range(12)
        ]
        return list(await asyncio.gather(*calls, return_exceptions=True))

    found = asyncio.run(story())
    refused = [each for each in found if isinstance(each, errors.OverloadedError)]
    answered = [each for each in found if isinstance(each, lorax.types.Response)]
    assert refused
    assert answered
    assert len(refused) + len(answered) == 12
    assert "Model is overloaded" in str(refused[0])


def test_the_async_client(server: Any) -> None:
    async def story() -> None:
        client = lorax.AsyncClient(server.url, timeout=1)
        adapter = server.adapters[0]
        replies = await asyncio.gather(
            *(
                client.generate("hello", adapter_id=name, max_new_tokens=4, ignore_eos_token=True)
                for name in (adapter, None, adapter, None)
            )
        )
        assert replies[0].generated_text == replies[2].generated_text
        assert replies[1].generated_text == replies[3].generated_text
        events = [
            event
            async for event in client.generate_stream(
                "hello", adapter_id=adapter, max_new_tokens=4, ignore_eos_token=True
            )
        ]
        assert events[-1].generated_text == replies[0].generated_text
        with pytest.raises(errors.GenerationError):
            await client.generate("x", adapter_id="nobody/1", max_new_tokens=1)

    asyncio.run(story())


def test_the_client_gets_json_by_a_schema(client: lorax.Client) -> None:
    schema = {"enum": ["yes", "no"]}
    reply = client.generate(
        "hello", max_new_tokens=40, response_format={"type": "json_object", "schema": schema}
    )
    assert json.loads(reply.generated_text) in ("yes", "no")
