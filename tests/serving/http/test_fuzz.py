"""Bodies of every kind at every POST route: no failure of ours, no request that hangs, no row left behind."""

import json
import time
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ODD: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [
            None, True, False, "", "0", "x" * 3000, "é😀\u0000", [], {}, [[]], [None], ["a", "b"], [""], 0, -1, 1, 2**31, 2**64,
            10**30, -(10**30), 0.5, -0.0, 1e-320, 1e-9, 1e308, -1e308, {"type": "json_object"}, {"type": "x"}, "tickets/1",
            "mail/latest", "../x", "tickets/1\r\nx: y",
        ]
    ),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
)  # fmt: skip
SCHEMAS: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(
        [
            {"type": "boolean"}, {"enum": ["a", "b"]}, {"type": "integer", "minimum": 5}, {"type": "string", "maxLength": 3},
            {"type": "nope"}, {"$ref": "#/$defs/none"}, {"$ref": "#"}, {"pattern": "("}, {"enum": []}, {}, {"not": {}}, 3, None,
        ]
    ),
    lambda inner: st.one_of(
        st.builds(lambda one: {"type": "array", "items": one, "maxItems": 2}, inner),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, max_size=3)),
        st.builds(
            lambda some: {"type": "object", "properties": some, "required": list(some)},
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        ),
    ),
    max_leaves=5,
)  # fmt: skip
NATIVE = (
    "adapter_id", "adapter_source", "merged_adapters", "api_token", "best_of", "temperature", "repetition_penalty",
    "frequency_penalty", "presence_penalty", "top_k", "top_p", "typical_p", "do_sample", "ignore_eos_token",
    "return_full_text", "stop", "truncate", "watermark", "details", "decoder_input_details", "return_k_alternatives",
    "apply_chat_template", "seed", "choices",
)  # fmt: skip
OPENAI = (
    "model", "temperature", "top_p", "top_k", "n", "stop", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "seed", "ignore_eos", "structured_outputs", "stream_options", "logprobs", "top_logprobs", "tools", "tool_choice",
    "functions", "messages", "prompt", "echo", "best_of", "max_tokens", "logit_bias", "user",
)  # fmt: skip


NUMBERS: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([0, 1, 2, 3, -1, 2**31, 2**63, 10**30, 1e-320, 1e-9, 0.5, 0.99, 1.5, 1e308]),
    st.floats(0, 2),
    st.integers(1, 9),
)
FLAGS = {
    "do_sample", "ignore_eos_token", "ignore_eos", "return_full_text", "watermark", "details", "decoder_input_details",
    "apply_chat_template", "echo",
}  # fmt: skip
LISTS = {"stop", "choices"}
TEXTS = {"adapter_id", "model", "api_token", "user", "tool_choice"}


def kind(name: str) -> st.SearchStrategy[Any]:
    """Mostly values of the field's own type, or every body would end at the first check."""
    if name in FLAGS:
        return st.booleans()
    if name in LISTS:
        return st.lists(st.sampled_from(["a", "re", "x y", "", " "]), max_size=5)
    if name in TEXTS:
        return st.sampled_from(
            ["", "tickets/1", "mail", "mail/latest", "nobody/1", "../x", "model"]
        )
    if name == "structured_outputs":
        return st.one_of(
            SCHEMAS.map(lambda s: {"json": s}), kind("choices").map(lambda c: {"choice": c})
        )
    if name in (
        "messages",
        "prompt",
        "tools",
        "functions",
        "merged_adapters",
        "adapter_source",
        "stream_options",
    ):
        return ODD
    return NUMBERS


def fields(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    odd = st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), ODD))
    own = st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), kind(name)))
    return st.lists(st.one_of(own, own, own, own, own, odd), max_size=5).map(dict)


def schemas(key: str) -> st.SearchStrategy[dict[str, Any]]:
    form = {
        "schema": SCHEMAS.map(lambda s: {"type": "json_object", "schema": s}),
        "json_schema": SCHEMAS.map(lambda s: {"type": "json_schema", "json_schema": {"schema": s}}),
    }[key]
    return st.one_of(st.just({}), st.just({}), form.map(lambda f: {"response_format": f}))


native = st.builds(
    lambda odd, schema, stream, inputs: {
        "inputs": inputs,
        "stream": stream,
        "parameters": {"max_new_tokens": 6} | odd | schema,
    },
    fields(NATIVE),
    schemas("schema"),
    st.booleans(),
    st.sampled_from(["hello", "where is my order", "hello", ""]),
)
SOUND = {"model": "", "prompt": "hello", "messages": [{"role": "user", "content": "hello"}]}
completion = st.builds(
    lambda odd, schema, stream: (
        SOUND | {"stream": stream, "max_tokens": 6} | odd | schema | {"max_completion_tokens": 6}
    ),
    fields(OPENAI),
    schemas("json_schema"),
    st.booleans(),
)
anything = st.dictionaries(st.sampled_from(("inputs", "lora_name", "add_special_tokens")), ODD)


@pytest.mark.parametrize(
    ("path", "bodies"),
    [
        ("/", native),
        ("/generate", native),
        ("/generate_stream", native),
        ("/v1/chat/completions", completion),
        ("/v1/completions", completion),
        ("/tokenize", anything),
        ("/v1/load_lora_adapter", anything),
        ("/v1/unload_lora_adapter", anything),
    ],
)
def test_no_body_is_a_failure_of_ours(
    server: Any, http: httpx.Client, path: str, bodies: st.SearchStrategy[Any]
) -> None:
    sound = {"inputs": "hello world", "parameters": {"max_new_tokens": 8}}
    before = http.post("/generate", json=sound).json()

    @settings(
        max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(bodies)
    def storm(body: Any) -> None:
        reply = http.post(path, json=body)
        assert reply.status_code < 500, reply.text
        assert "internal error" not in reply.text
        if reply.headers["content-type"].startswith("text/event-stream"):
            blocks = [b for b in reply.text.split("\n\n") if b and not b.startswith(":")]
            assert all(block.startswith("data: ") for block in blocks)
            for block in blocks:
                if block != "data: [DONE]":
                    json.loads(block.removeprefix("data: "))

    storm()
    settled(http)
    assert http.post("/generate", json=sound).json() == before


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b'"x"', b"{" * 50_000, b'{"z":' * 50_000 + b"1" + b"}" * 50_000, b"\x00\xff"],
    ids=["empty", "null", "a list", "a text", "open braces", "nested deeply", "bytes"],
)  # fmt: skip
def test_what_is_no_body_is_refused(
    server: Any, http: httpx.Client, path: str, content: bytes
) -> None:
    reply = http.post(path, content=content, headers={"content-type": "application/json"})
    assert reply.status_code in (400, 422)


def settled(http: httpx.Client) -> None:
    """Nothing waits and nothing runs."""
    deadline = time.monotonic() + 10
    while True:
        text = http.get("/metrics").text
        if "lorax_queue_length 0.0" in text and "lorax_batch_current_size 0.0" in text:
            return
        assert time.monotonic() < deadline, "rows were left behind"
        time.sleep(0.02)
