"""The replay teacher: rows found by text, faults by seed, and the HTTP side with the official client."""

import asyncio
import json
from pathlib import Path

import httpx2 as httpx  # what the openai client is built on
import openai
import pytest

from serving.errors import OperatorError
from serving.replay import Faults, RateLimit, ReplaySettings, Rows, load
from serving.replay_app import create_replay_app

ROWS = [
    {"text": "Where is  my order?\nIt is late.", "teacher": {"intent": "shipping", "urgent": True}},
    {"text": "ok", "teacher": "other"},
    {"text": "I want a refund", "teacher": "refund"},
    {"text": "I want a refund", "teacher": "other"},
]


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    return load([file], "text", "teacher")


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        pytest.param(
            "I want a refund", "refund", id="the whole message, the first row of two counts"
        ),
        pytest.param("  I want\na   refund ", "refund", id="white space counts as one blank"),
        pytest.param(
            "Classify this.\n\nI want a refund", "refund", id="after an instruction's line"
        ),
        pytest.param("Classify this: I want a refund", "refund", id="after a colon"),
        pytest.param('Ticket:\n"""I want a refund"""', "refund", id="in quotes"),
        pytest.param(
            "T: Where is my order? It is late.",
            '{"intent":"shipping","urgent":true}',
            id="an object as compact JSON",
        ),
        pytest.param("Label: ok", "other", id="a short text after a colon"),
        pytest.param("that looks ok", None, id="a short text is not found inside a sentence"),
        pytest.param("I want a refund now", None, id="something else after the text"),
    ],
)
def test_a_message_finds_its_row(rows: Rows, message: str, answer: str | None) -> None:
    assert rows.find(message) == answer


def test_bad_rows_are_named_by_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"text":"a","teacher":"b"}\n{"text":\n[1]\n{"text":"a","gold":"b"}\n{"text":" ","teacher":"b"}\n'
    )
    with pytest.raises(OperatorError) as caught:
        load([file], "text", "teacher")
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["line 2", "line 3", "line 4", "line 5"]
    assert all(line.startswith(str(file)) for line in lines)
    assert "'teacher' (--answer-key); keys here: gold, text" in lines[2]


@pytest.mark.parametrize(
    "content", [b"", b"\n \n", b"\xff\xfe\x00"], ids=["empty", "blank", "not UTF-8"]
)
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(OperatorError, match=r"rows\.jsonl: no"):
        load([file], "text", "teacher")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="No such file"):
        load([tmp_path / "none.jsonl"], "text", "teacher")


def test_faults_are_drawn_by_seed() -> None:
    settings = ReplaySettings(latency_seconds=1.0, error_share=0.3, seed=7)
    first, again = Faults(settings), Faults(settings)
    draws = [first.draw() for _ in range(2000)]
    assert draws == [again.draw() for _ in range(2000)]
    assert all(0.8 <= seconds <= 1.2 for seconds, _ in draws)
    assert min(draws)[0] < 0.82
    assert max(draws)[0] > 1.18
    assert 0.27 < sum(fails for _, fails in draws) / 2000 < 0.33


def test_a_rate_limit_admits_its_rate() -> None:
    limit = RateLimit(5)
    assert [limit.admit(0.0) for _ in range(5)] == [0.0] * 5
    assert limit.admit(0.0) == pytest.approx(0.2)
    assert limit.admit(0.2) == 0.0
    assert limit.admit(0.2) > 0
    assert RateLimit(0).admit(0.0) == 0.0


def client(rows: Rows, settings: ReplaySettings) -> openai.AsyncOpenAI:
    transport = httpx.ASGITransport(create_replay_app(rows, settings, clock=lambda: 0.0))
    return openai.AsyncOpenAI(
        base_url="http://replay/v1",
        api_key="none",
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(transport=transport),
    )


def test_the_official_client_gets_answers_streams_and_models(rows: Rows) -> None:
    async def story() -> None:
        async with client(rows, ReplaySettings(model="gpt-x", latency_seconds=0)) as api:
            raw = await api.chat.completions.with_raw_response.create(
                model="any",
                messages=[
                    {"role": "system", "content": "Classify."},
                    {"role": "user", "content": [{"type": "text", "text": "I want a refund"}]},
                ],
            )
            assert raw.headers["x-graduate-replay"] == "true"
            reply = raw.parse()
            assert reply.choices[0].message.content == "refund"
            assert (reply.model, reply.system_fingerprint) == ("gpt-x", "replay")
            assert reply.usage is not None
            assert reply.usage.completion_tokens == 2
            stream = await api.chat.completions.create(
                model="any",
                messages=[{"role": "user", "content": "x: Where is my order? It is late."}],
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert json.loads(text) == ROWS[0]["teacher"]
            assert chunks[-2].choices[0].finish_reason == "stop"
            assert chunks[-1].usage is not None
            assert [model.id async for model in api.models.list()] == ["gpt-x"]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("settings", "message", "error"),
    [
        pytest.param(
            ReplaySettings(latency_seconds=0), "new", openai.NotFoundError, id="not recorded"
        ),
        pytest.param(
            ReplaySettings(latency_seconds=0, error_share=1),
            "ok",
            openai.InternalServerError,
            id="an error by lot",
        ),
        pytest.param(
            ReplaySettings(latency_seconds=0, requests_per_second=0.5),
            "ok",
            openai.RateLimitError,
            id="over the limit",
        ),
    ],
)
def test_faults_are_openai_errors(
    rows: Rows, settings: ReplaySettings, message: str, error: type[openai.APIStatusError]
) -> None:
    async def ask(api: openai.AsyncOpenAI) -> None:
        await api.chat.completions.create(
            model="any", messages=[{"role": "user", "content": message}]
        )

    async def story() -> openai.APIStatusError:
        async with client(rows, settings) as api:
            with pytest.raises(error) as caught:
                await asyncio.gather(*(ask(api) for _ in range(2)))
            return caught.value

    raised = asyncio.run(story())
    assert "replay" in raised.message
    assert raised.response.headers["x-graduate-replay"] == "true"
    if error is openai.NotFoundError:
        assert "replay of 3 recorded answers" in raised.message
    if error is openai.RateLimitError:
        assert raised.response.headers["retry-after"] == "2"


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"messages":3}', b'{"messages":[null,3,{"role":"user"}]}',
        b'{"messages":[{"role":"system","content":"x"}]}',
    ],
)  # fmt: skip
def test_a_bad_body_is_a_400(rows: Rows, body: bytes) -> None:
    async def story() -> httpx.Response:
        transport = httpx.ASGITransport(create_replay_app(rows, ReplaySettings(latency_seconds=0)))
        async with httpx.AsyncClient(transport=transport, base_url="http://replay") as http:
            assert (await http.get("/ready")).json()["replay_rows"] == 3
            assert (await http.get("/v1/files")).status_code == 404
            return await http.post("/v1/chat/completions", content=body)

    reply = asyncio.run(story())
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"
