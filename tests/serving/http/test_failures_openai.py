"""Error classes of the official openai client: which failures of the server become which, before and within a stream."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.serving.faulty import BREAKS, ENDS, FAILS
from tests.serving.http.test_fuzz import settled


@pytest.fixture
def client(faulty_server: Any) -> Iterator[openai.OpenAI]:
    """Each request on a connection of its own: uvicorn closes one after a mistake in the code, and may not have yet."""
    with openai.OpenAI(
        base_url=f"{faulty_server.url}/v1", api_key="none", max_retries=0,
        default_headers={"connection": "close"},
    ) as client:  # fmt: skip
        yield client


def chat(client: openai.OpenAI, text: str, **more: Any) -> Any:
    fields = {"model": "", "max_tokens": 6, "extra_body": {"ignore_eos": True}} | more
    return client.chat.completions.create(messages=[{"role": "user", "content": text}], **fields)


@pytest.mark.parametrize(
    ("text", "part"),
    [(FAILS, "a step failed"), (ENDS, "Incomplete generation"), (BREAKS, "internal error")],
    ids=["a step that failed", "no end", "a mistake in the code"],
)
def test_our_own_failures_are_server_errors(client: openai.OpenAI, text: str, part: str) -> None:
    """Also for a stream, as long as nothing of it has been sent."""
    for more in ({}, {"stream": True}):
        with pytest.raises(openai.InternalServerError) as caught:
            chat(client, f"{text} {text}", **more)
        assert part in caught.value.message
        assert caught.value.type == "server_error"


@pytest.mark.parametrize("text", [FAILS, ENDS])
def test_a_stream_that_fails_later_raises_and_is_not_done(
    client: openai.OpenAI, faulty_server: Any, text: str
) -> None:
    seen: list[Any] = []
    stream = chat(client, text, stream=True)
    with pytest.raises(openai.APIError) as caught:
        seen.extend(stream)
    assert caught.value.type == "server_error"
    assert seen[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].finish_reason is None for chunk in seen)
    body = {"model": "", "stream": True, "messages": [{"role": "user", "content": text}]}
    reply = httpx.post(f"{faulty_server.url}/v1/chat/completions", json=body, trust_env=False)
    assert reply.status_code == 200
    assert "[DONE]" not in reply.text


@pytest.mark.parametrize("stream", [False, True])
def test_an_adapter_that_cannot_be_used_is_a_424_with_the_reason(
    client: openai.OpenAI, stream: bool
) -> None:
    for _ in range(2):  # the second time without another load
        with pytest.raises(openai.APIStatusError) as caught:
            chat(client, "hello", model="foreign/1", stream=stream)
        assert caught.value.status_code == 424
        assert caught.value.code == "adapter_failed"
        assert "made for base model other" in caught.value.message


BAD: list[tuple[str, Callable[[openai.OpenAI], Any], str]] = [
    ("no choice to choose", lambda c: chat(c, "x", extra_body={"structured_outputs": {"choice": []}}), "1 to 1000 texts"),
    ("tools", lambda c: chat(c, "x", tools=[{"type": "function", "function": {"name": "f"}}]), "tools: not supported"),
    ("functions", lambda c: chat(c, "x", functions=[{"name": "f"}]), "tools: not supported"),
    ("an image", lambda c: c.chat.completions.create(
        model="", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    ), "allowed: text"),
    ("a schema that is none", lambda c: chat(c, "x", response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nope"}}}), "nope"),
    ("a choice that no tokens write", lambda c: chat(c, "x", extra_body={"structured_outputs": {"choice": ["café"]}}), "cannot be written"),
    ("more choices than allowed", lambda c: chat(c, "x", n=9), "n: 9; allowed: 1 to 8"),
    ("more log-probabilities than allowed", lambda c: chat(c, "x", logprobs=True, top_logprobs=21), "allowed: 0 to 20"),
    ("several prompts", lambda c: c.completions.create(model="", prompt=["a", "b"]), "2 prompts; allowed: one"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "part"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_cannot_be_done_is_a_bad_request(
    client: openai.OpenAI, call: Callable[[openai.OpenAI], Any], part: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        call(client)
    assert part in caught.value.message


def test_a_caller_whose_patience_ends_frees_its_row(faulty_server: Any) -> None:
    async def story() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{faulty_server.url}/v1", api_key="none", max_retries=0, timeout=0.05
        ) as client:
            with pytest.raises(openai.APITimeoutError):
                await client.chat.completions.create(
                    model="", messages=[{"role": "user", "content": "hello"}], max_tokens=450,
                    extra_body={"ignore_eos": True},
                )  # fmt: skip

    asyncio.run(story())
    with httpx.Client(base_url=faulty_server.url, trust_env=False) as http:
        settled(http)


def test_a_pinned_adapter_is_there_from_the_start_and_stays(
    client: openai.OpenAI, faulty_server: Any
) -> None:
    with httpx.Client(base_url=faulty_server.url, trust_env=False) as http:
        reply = http.post("/v1/load_lora_adapter", json={"lora_name": "tickets/1"})
        assert "already been loaded" in reply.json()["error"]["message"]
        reply = http.post("/v1/unload_lora_adapter", json={"lora_name": "tickets/1"})
        assert (reply.status_code, "is pinned" in reply.text) == (400, True)


def test_one_model_by_its_id(client: openai.OpenAI, faulty_server: Any) -> None:
    assert client.models.retrieve("tickets/1").id == "tickets/1"
    assert client.models.retrieve(faulty_server.base_id).id == faulty_server.base_id
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("tickets/99")
    assert caught.value.code == "model_not_found"
