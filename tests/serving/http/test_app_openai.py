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
