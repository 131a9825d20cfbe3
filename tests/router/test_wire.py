import json

import pytest

from router.errors import BadRequest
from router.wire import parse

CHAT = "/v1/chat/completions"


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def test_a_chat_is_seen_whole_and_kept_verbatim() -> None:
    parts = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": parts}]
    raw = body(messages=messages, stream=True, unknown={"a": 1}, metadata={"a": "b", "c": 1})
    view = parse(CHAT, {"x-graduate-conversation": "c1"}, raw)
    assert view.body == raw
    assert (view.system_text, view.input_text) == ("S", "hi")
    assert view.messages == messages
    assert (view.stream, view.tools, view.n) == (True, False, 1)
    assert (view.metadata, view.conversation) == ({"a": "b"}, "c1")


def test_the_header_names_the_user_before_the_body_does() -> None:
    assert parse(CHAT, {"x-graduate-user": "h"}, body(user="b")).user == "h"
    assert parse(CHAT, {}, body(user="b")).user == "b"


def test_a_completions_prompt_reads_as_one_user_message() -> None:
    assert parse("/v1/completions", {}, body(prompt="yo")).input_text == "yo"
    assert parse("/v1/completions", {}, body(prompt=["a", "b"])).input_text == "a\nb"


@pytest.mark.parametrize(
    ("tools", "seen"), [(None, False), ([], False), ([{"type": "function"}], True)]
)
def test_tools(tools: object, seen: bool) -> None:
    assert parse(CHAT, {}, body(tools=tools)).tools is seen


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        pytest.param(b"", None, id="empty"),
        pytest.param(b"{", None, id="cut off"),
        pytest.param(b"[]", None, id="not an object"),
        pytest.param(b"\xff", None, id="not UTF-8"),
        pytest.param(b'{"model":1}', "model", id="model is a number"),
        pytest.param(body(n="x"), "n", id="n is text"),
        pytest.param(body(messages=[1]), "messages", id="a message is a number"),
        pytest.param(body(messages="x"), "messages", id="messages are text"),
        pytest.param(body(prompt=7), "prompt", id="prompt is a number"),
        pytest.param(b'{"model":"m","metadata":{"a":' + b"[" * 99_999, None, id="nested too deep"),
        pytest.param(b'{"model":"m","messages":[{"role":"\xff"}]}', None, id="text is not UTF-8"),
    ],
)
def test_a_bad_body_is_the_callers_fault_and_names_the_field(raw: bytes, field: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        _ = parse(CHAT, {}, raw).messages
    if field is not None:
        assert caught.value.field == field
