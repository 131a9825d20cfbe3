"""What the teacher says reaches the caller as it came: the official client and raw bytes."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from router.traffic import scan
from tests.router.conftest import Behaviour, Live, Start

TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
]
ASK: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture
def live(start: Start) -> Live:
    return start("teacher")


@pytest.fixture
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="sk-mine", max_retries=0) as made:
        yield made


def test_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="mail", messages=ASK)
    assert reply.choices[0].message.content == "teacher says"
    assert reply.usage is not None
    assert reply.usage.total_tokens == 12
    assert reply.model_extra == {"x_unknown": {"kept": True}}


def test_stream_with_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="mail", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "teachersays"
    assert chunks[-1].usage is not None


def test_tools_pass_through(client: openai.OpenAI, live: Live) -> None:
    reply = client.chat.completions.create(model="mail", messages=ASK, tools=TOOLS)
    calls = reply.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert calls[0].function.arguments == '{"at":1}'
    (record,) = live.records()
    assert record.answers[0].tool_calls[0].name == "look"


def test_n(client: openai.OpenAI) -> None:
    assert len(client.chat.completions.create(model="mail", messages=ASK, n=3).choices) == 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
def test_each_error_is_its_own_class(
    client: openai.OpenAI, behaviour: Behaviour, status: int, kind: type[openai.APIStatusError]
) -> None:
    behaviour.status = status
    behaviour.headers = {"retry-after": "7"}
    with pytest.raises(kind) as caught:
        client.chat.completions.create(model="mail", messages=ASK)
    assert caught.value.response.headers["retry-after"] == "7"
    assert caught.value.body == {
        "message": "no",
        "type": "server_error",
        "param": None,
        "code": "x",
    }


def test_models_lists_the_teachers_and_the_routes(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["gpt-x", "mail"]


def test_embeddings_pass_through(client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="e", input="x", encoding_format="float")
    assert found.data[0].embedding == [0.5, 0.25]


def test_an_upload_is_streamed_through(client: openai.OpenAI) -> None:
    data = b"x" * 3_000_000
    found = client.files.create(file=("x.jsonl", data), purpose="batch")
    assert found.bytes is not None
    assert found.bytes > len(data)


def test_a_teacher_that_is_away_is_a_502_that_names_it(start: Start) -> None:
    text = """
version: 1
backends: {gone: {kind: openai, base_url: "http://127.0.0.1:9/v1", retries: {attempts: 1}}}
default: {teacher: {backend: gone}, log: {share: 100%}}
"""
    live = start(text=text)
    with (
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(
            openai.InternalServerError, match=r"backend gone: cannot connect to 127\.0\.0\.1:9"
        ),
    ):
        client.chat.completions.create(model="m", messages=ASK)
    (record,) = live.records()
    assert (record.status, record.answers[0].error) == (502, "connect")
    assert live.client.get("/v1/models").json()["data"] == []
    assert live.client.get("/v1/other").status_code == 502


def test_a_slow_teacher_is_a_504(start: Start, behaviour: Behaviour) -> None:
    behaviour.teacher_delay = 1.3
    live = start("teacher")
    reply = live.ask()
    assert reply.status_code == 504
    assert reply.json()["error"]["code"] == "backend_timeout"


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="a plain chat"),
        pytest.param({"stream": True}, id="a stream"),
        pytest.param({"tools": TOOLS}, id="tools"),
        pytest.param({"unknown": {"a": [1, 2]}, "seed": 5, "response_format": {"type": "json_object"}}, id="unknown fields"),
    ],
)  # fmt: skip
def test_bytes_and_headers_are_the_teachers_own(
    live: Live, behaviour: Behaviour, more: dict[str, Any]
) -> None:
    behaviour.headers = {"x-request-id": "abc", "openai-organization": "me"}
    body = json.dumps({"model": "mail", "messages": ASK, **more}, indent=2).encode()
    headers = {"content-type": "application/json", "authorization": "Bearer k", "x-own": "1"}
    direct = httpx.post(
        f"{live.upstream}/v1/chat/completions", content=body, headers=headers, trust_env=False
    )
    routed = live.client.post("/v1/chat/completions", content=body, headers=headers)
    assert routed.status_code == direct.status_code
    assert routed.content == direct.content
    ours = {
        "x-graduate-request-id",
        "x-graduate-route",
        "x-graduate-served-by",
        "x-graduate-reason",
    }
    framing = {"date", "server", "content-length", "transfer-encoding"}
    assert {k: v for k, v in routed.headers.items() if k not in ours | framing} == {
        k: v for k, v in direct.headers.items() if k not in framing
    }
    (_, first, sent), (_, second, again) = behaviour.seen
    assert again == sent == body
    assert (second["authorization"], second["x-own"]) == (first["authorization"], "1")


def test_a_body_over_the_limit_is_413(live: Live) -> None:
    reply = live.client.post("/v1/chat/completions", content=b" " * (21 << 20))
    assert reply.status_code == 413
    assert list(scan(live.home / "traffic")) == []
