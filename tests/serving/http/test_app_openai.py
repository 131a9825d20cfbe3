"""OpenAI's routes over a real socket: framing, prompts of adapters, loading and unloading."""

import json
from typing import Any

import httpx
import pytest


def chat(model: str = "", **fields: Any) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "hello world"}],
        "max_tokens": 4,
        "temperature": 0,
        "ignore_eos_token": True,
    } | fields


def test_a_stream_ends_with_done(server: Any, http: httpx.Client) -> None:
    text = http.post("/v1/chat/completions", json=chat(stream=True)).text
    blocks = text.removesuffix("\n\n").split("\n\n")
    assert blocks[-1] == "data: [DONE]"
    chunks = [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1]["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "length",
    }


def test_the_token_that_ends_an_answer_is_not_in_its_stream(
    server: Any, http: httpx.Client
) -> None:
    """One of two choices begins as the other, so that only the end token can tell them apart."""
    asked = chat(
        temperature=1,
        max_tokens=9,
        ignore_eos_token=False,
        structured_outputs={"choice": ["h", "hq"]},
        logprobs=True,
    )
    found = set()
    for seed in range(12):
        whole = http.post("/v1/chat/completions", json=asked | {"seed": seed}).json()["choices"][0]
        text = http.post("/v1/chat/completions", json=asked | {"seed": seed, "stream": True}).text
        chunks = [json.loads(b[6:])["choices"][0] for b in text.split("\n\n")[:-2]]
        content = whole["message"]["content"]
        assert "".join(c["delta"].get("content", "") for c in chunks) == content
        assert chunks[-1]["finish_reason"] == whole["finish_reason"] == "stop"
        tokens = [t for c in chunks if c["logprobs"] for t in c["logprobs"]["content"]]
        assert tokens == whole["logprobs"]["content"]
        found.add(content)
    assert found == {"h", "hq"}


def test_a_text_completions_stream_tells_the_places_of_its_tokens(
    server: Any, http: httpx.Client
) -> None:
    asked = chat(prompt="hello", logprobs=1, echo=True, max_tokens=6)
    whole = http.post("/v1/completions", json=asked).json()["choices"][0]
    text = http.post("/v1/completions", json=asked | {"stream": True}).text
    chunks = [json.loads(b[6:])["choices"][0] for b in text.split("\n\n")[:-2]]
    places = [at for c in chunks if c["logprobs"] for at in c["logprobs"]["text_offset"]]
    assert places == whole["logprobs"]["text_offset"]
    assert "".join(c["text"] for c in chunks) == whole["text"]


SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "minLength": 40}}, "required": ["a"]}  # fmt: skip


def by(schema: Any, **more: Any) -> dict[str, Any]:
    return chat(
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        ignore_eos_token=False,
        **more,
    )


def test_an_answer_that_is_cut_before_its_schema_is_full_says_length(
    server: Any, http: httpx.Client
) -> None:
    choice = http.post("/v1/chat/completions", json=by(SCHEMA, max_tokens=5)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    asked = by({"enum": [12]}, prompt="hello", max_tokens=9)
    assert http.post("/v1/completions", json=asked).json()["choices"][0]["text"] == "12"


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ({"type": "nope"}, "Invalid type: nope"),
        ({"$ref": "#/$defs/none"}, "does not exist"),
        ({"$ref": "http://127.0.0.1:1/schema"}, "retrieving it failed"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"enum": ["x" * 70_000]}, "at most 65536 characters. Given: 700"),
    ],
    ids=["unknown type", "dangling", "elsewhere", "a pattern that is none", "too long"],
)
def test_a_schema_that_cannot_be_enforced_is_refused(
    server: Any, http: httpx.Client, schema: Any, part: str
) -> None:
    reply = http.post("/v1/chat/completions", json=by(schema))
    assert (reply.status_code, part in reply.text) == (400, True), reply.text


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": ["é"]},
        {"anyOf": [{"type": "object", "properties": {f"p{i}": {}}} for i in range(900)]},
    ],
    ids=["a character that the tiny vocabulary has no tokens for", "too many ways on"],
)
def test_a_grammar_that_breaks_half_way_gives_no_answer(
    server: Any, http: httpx.Client, schema: Any
) -> None:
    """What came before must not be taken for an answer, and the reason is short."""
    reply = http.post("/v1/chat/completions", json=by(schema, max_tokens=9))
    assert (reply.status_code, "the grammar cannot go on" in reply.text) == (500, True)
    assert len(reply.text) < 800


def test_schemas_with_references_and_recursion(server: Any, http: httpx.Client) -> None:
    node = {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1}
    asked = by({"$ref": "#/$defs/node", "$defs": {"node": node}}, max_tokens=60)
    content = http.post("/v1/chat/completions", json=asked | {"seed": 3, "temperature": 1}).json()
    text = content["choices"][0]["message"]["content"]
    assert not text.replace("[", "").replace("]", "").strip()


def test_an_adapters_own_prompt_is_what_a_chat_reads(server: Any, http: httpx.Client) -> None:
    """The manifest's prompt, filled in, gives what the native route gives for the same text."""
    parameters = {"adapter_id": server.prompted, "max_new_tokens": 4, "ignore_eos_token": True}
    native = http.post("/generate", json={"inputs": "T: hello wo\nA:", "parameters": parameters})
    reply = http.post("/v1/chat/completions", json=chat(server.prompted))
    assert reply.json()["choices"][0]["message"]["content"] == native.json()["generated_text"]
    assert reply.headers["x-prompt-tokens"] == native.headers["x-prompt-tokens"]


def test_headers_name_the_adapter(server: Any, http: httpx.Client) -> None:
    adapter = server.adapters[0]
    for stream in (False, True):
        reply = http.post("/v1/chat/completions", json=chat(adapter, stream=stream))
        assert reply.headers["x-adapter-id"] == adapter
        assert reply.headers["x-model-id"] == server.base_id


def test_load_and_unload(server: Any, http: httpx.Client) -> None:
    adapter = server.adapters[-1]
    http.post("/v1/unload_lora_adapter", json={"lora_name": adapter})
    loaded = http.post("/v1/load_lora_adapter", json={"lora_name": adapter, "lora_path": "x"})
    assert (loaded.status_code, loaded.text) == (
        200,
        f"Success: LoRA adapter '{adapter}' added successfully.",
    )
    again = http.post("/v1/load_lora_adapter", json={"lora_name": adapter})
    assert (again.status_code, "already been loaded" in again.json()["error"]["message"]) == (
        400,
        True,
    )
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": adapter}).status_code == 200
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": adapter}).status_code == 404
    assert http.post("/v1/load_lora_adapter", json={"lora_name": "nobody/1"}).status_code == 404
    assert http.post("/v1/load_lora_adapter", json={}).status_code == 400


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 400), (b"{}", 400), (b'{"model":"","messages":3}', 400), (b"x" * 2_100_000, 413)],
)
def test_a_body_that_cannot_be_read_is_an_openai_error(
    server: Any, http: httpx.Client, content: bytes, status: int
) -> None:
    reply = http.post("/v1/chat/completions", content=content)
    assert reply.status_code == status
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_an_adapter_answers_the_same_alone_and_beside_others(
    server: Any, http: httpx.Client
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    names = [*server.adapters, ""] * 3

    def ask(name: str) -> str:
        reply = http.post("/v1/chat/completions", json=chat(name, max_tokens=8))
        return str(reply.json()["choices"][0]["message"]["content"])

    alone = {name: ask(name) for name in set(names)}
    with ThreadPoolExecutor(len(names)) as pool:
        together = list(pool.map(ask, names))
    assert together == [alone[name] for name in names]
