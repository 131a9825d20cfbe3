"""The official openai client against a running server."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

HELLO: list[Any] = [{"role": "user", "content": "hello world"}]


@pytest.fixture
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat(client: openai.OpenAI, server: Any) -> None:
    adapter = server.adapters[0]
    reply = client.chat.completions.create(
        model=adapter,
        messages=HELLO,
        max_completion_tokens=5,
        temperature=0,
        extra_body={"ignore_eos_token": True},
    )
    assert reply.object == "chat.completion"
    assert reply.model == adapter
    assert reply.choices[0].finish_reason == "length"
    assert reply.choices[0].message.role == "assistant"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 5
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 5


def test_a_stream_is_the_whole_reply_in_pieces(client: openai.OpenAI, server: Any) -> None:
    def ask(**more: Any) -> Any:
        return client.chat.completions.create(
            model=server.base_id, messages=HELLO, max_tokens=6, temperature=0,
            extra_body={"ignore_eos_token": True}, **more,
        )  # fmt: skip

    whole = ask()
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_two_choices_stream_side_by_side(client: openai.OpenAI, server: Any) -> None:
    chunks = list(
        client.chat.completions.create(
            model=server.base_id, messages=HELLO, max_tokens=4, n=2, seed=3, temperature=2, stream=True,
            extra_body={"ignore_eos_token": True},
        )
    )  # fmt: skip
    assert {c.choices[0].index for c in chunks} == {0, 1}
    assert sum(c.choices[0].finish_reason is not None for c in chunks) == 2


def test_log_probabilities(client: openai.OpenAI, server: Any) -> None:
    reply = client.chat.completions.create(
        model=server.base_id, messages=HELLO, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2,
        extra_body={"ignore_eos_token": True},
    )  # fmt: skip
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(t.token for t in logprobs.content) == reply.choices[0].message.content
    for token in logprobs.content:
        assert token.logprob <= 0
        assert token.top_logprobs[0].token == token.token
        assert len(token.top_logprobs) == 2


def test_a_stop_sequence_is_cut_off(client: openai.OpenAI, server: Any) -> None:
    def ask(stream: bool = False, **more: Any) -> Any:
        return client.chat.completions.create(
            model=server.base_id, messages=HELLO, max_tokens=8, temperature=0, logprobs=True, stream=stream,
            extra_body={"ignore_eos_token": True}, **more,
        )  # fmt: skip

    whole = ask()
    pieces = [t.token for t in whole.choices[0].logprobs.content]
    stop = next(piece for piece in pieces[1:] if piece.strip())
    cut = ask(stop=stop)
    text = whole.choices[0].message.content
    assert cut.choices[0].message.content == text[: text.find(stop)]
    assert cut.choices[0].finish_reason == "stop"
    chunks = list(ask(stream=True, stop=[stop]))
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert streamed == cut.choices[0].message.content


def test_json_by_a_schema(client: openai.OpenAI, server: Any) -> None:
    schema = {"enum": ["yes", "no"]}
    reply = client.chat.completions.create(
        model=server.adapters[0], messages=HELLO, max_tokens=40, temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}},
    )  # fmt: skip
    assert json.loads(reply.choices[0].message.content or "") in ("yes", "no")


def test_one_of_some_choices(client: openai.OpenAI, server: Any) -> None:
    reply = client.chat.completions.create(
        model=server.base_id, messages=HELLO, max_tokens=20,
        extra_body={"structured_outputs": {"choice": ["refund", "shipping"]}},
    )  # fmt: skip
    assert reply.choices[0].message.content in ("refund", "shipping")
    assert reply.choices[0].finish_reason == "stop"


def test_a_text_completion(client: openai.OpenAI, server: Any) -> None:
    def ask(**more: Any) -> Any:
        return client.completions.create(
            model=server.adapters[0], prompt="hello world", max_tokens=4, temperature=0, **more
        )

    reply = ask(logprobs=2, echo=True, extra_body={"ignore_eos_token": True})
    assert reply.object == "text_completion"
    assert reply.choices[0].text.startswith("hello world")
    assert reply.choices[0].logprobs.text_offset[0] == len("hello world")
    chunks = list(ask(stream=True, extra_body={"ignore_eos_token": True}))
    assert "hello world" + "".join(c.choices[0].text for c in chunks) == reply.choices[0].text


def test_models_are_listed_with_their_parent(client: openai.OpenAI, server: Any) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {server.base_id, *server.adapters}
    assert getattr(listed[server.adapters[0]], "parent", None) == server.base_id


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [
        pytest.param(
            lambda c: c.chat.completions.create(model="nobody/1", messages=HELLO),
            openai.NotFoundError, "model_not_found", id="an unknown adapter",
        ),
        pytest.param(
            lambda c: c.chat.completions.create(model="nobody/1", messages=HELLO, stream=True),
            openai.NotFoundError, "model_not_found", id="an unknown adapter, asked for a stream",
        ),
        pytest.param(
            lambda c: c.chat.completions.create(model="", messages=HELLO, temperature=3),
            openai.BadRequestError, None, id="a parameter outside its bounds",
        ),
        pytest.param(
            lambda c: c.chat.completions.create(model="", messages="hello"),
            openai.BadRequestError, None, id="a body of another shape",
        ),
        pytest.param(
            lambda c: c.chat.completions.create(
                model="", messages=[{"role": "user", "content": "hello " * 5000}]
            ),
            openai.BadRequestError, "context_length_exceeded", id="a prompt that is too long",
        ),
        pytest.param(lambda c: c.embeddings.create(model="", input="x"), openai.NotFoundError, None, id="not served"),
    ],
)  # fmt: skip
def test_failures_are_the_clients_own_classes(
    client: openai.OpenAI,
    call: Callable[[openai.OpenAI], object],
    error: type[openai.APIStatusError],
    code: str | None,
) -> None:
    with pytest.raises(error) as caught:
        call(client)
    assert caught.value.code == code
    assert caught.value.type == "invalid_request_error"


def test_a_full_queue_is_a_rate_limit_error(crowded_server: Any) -> None:
    async def story() -> list[object]:
        async with openai.AsyncOpenAI(
            base_url=f"{crowded_server.url}/v1", api_key="none", max_retries=0
        ) as client:
            calls = [
                client.chat.completions.create(
                    model="", messages=HELLO, max_tokens=60, extra_body={"ignore_eos_token": True}
                )
                for _ in range(12)
            ]
            return list(await asyncio.gather(*calls, return_exceptions=True))

    found = asyncio.run(story())
    refused = [each for each in found if isinstance(each, openai.RateLimitError)]
    assert refused
    assert int(refused[0].response.headers["retry-after"]) >= 1
    assert any(not isinstance(each, Exception) for each in found)
