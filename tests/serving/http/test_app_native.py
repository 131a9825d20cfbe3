"""LoRAX's routes over a real socket: framing, headers, statuses, disconnects, and what operators see."""

import json
import time
from typing import Any

import httpx
import pytest

HEADERS = {
    "x-compute-type", "x-compute-time", "x-total-time", "x-compute-characters", "x-validation-time", "x-queue-time",
    "x-inference-time", "x-time-per-token", "x-time-to-first-token", "x-time-per-output-token", "x-prompt-tokens",
    "x-generated-tokens", "x-skipped-tokens", "x-total-tokens", "x-model-id",
}  # fmt: skip


def body(inputs: str = "hello world", **parameters: Any) -> dict[str, Any]:
    return {
        "inputs": inputs,
        "parameters": {"max_new_tokens": 4, "ignore_eos_token": True} | parameters,
    }


def events(text: str) -> list[dict[str, Any]]:
    """The events of a native stream; every one is one `data:` line and a blank one."""
    blocks = text.removesuffix("\n\n").split("\n\n")
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def _skipped_tokens(http: httpx.Client) -> float:
    lines = http.get("/metrics").text.splitlines()
    (line,) = (each for each in lines if each.startswith("lorax_request_skipped_tokens_sum "))
    return float(line.split()[1])


def _without_skips(answer: dict[str, Any]) -> dict[str, Any]:
    details = {k: v for k, v in answer["details"].items() if k not in ("tokens", "skipped_tokens")}
    tokens = [
        (token["id"], token["text"], pytest.approx(token["logprob"], abs=1e-4), token["special"])
        for token in answer["details"]["tokens"]
    ]
    return {**answer, "details": details, "tokens": tokens}


def test_generate_is_an_object_and_the_root_a_list(server: Any, http: httpx.Client) -> None:
    one = http.post("/generate", json=body(details=True))
    before = _skipped_tokens(http)
    listed = http.post("/", json=body(details=True))
    (again,) = listed.json()
    # The same answer is guessed from the first one; nothing else differs.
    skipped = [token["skipped"] for token in again["details"]["tokens"]]
    assert again["details"]["skipped_tokens"] == skipped.count(True) > 0
    assert listed.headers["x-skipped-tokens"] == str(skipped.count(True))
    assert _skipped_tokens(http) == before + skipped.count(True)
    assert _without_skips(again) == _without_skips(one.json())
    assert set(one.json()["details"]) == {
        "finish_reason", "prompt_tokens", "generated_tokens", "skipped_tokens", "seed", "prefill", "tokens",
    }  # fmt: skip
    assert set(http.post("/generate", json=body()).json()) == {"generated_text"}


def test_headers_are_whole_milliseconds(server: Any, http: httpx.Client) -> None:
    adapter = server.adapters[0]
    reply = http.post("/generate", json=body(adapter_id=adapter))
    assert set(reply.headers) >= HEADERS | {"x-adapter-id", "x-adapter-source"}
    assert reply.headers["x-adapter-id"] == adapter
    assert reply.headers["x-model-id"] == server.base_id
    counted = {
        name: int(reply.headers[name]) for name in HEADERS - {"x-compute-type", "x-model-id"}
    }
    assert counted["x-compute-characters"] == len("hello world")
    assert counted["x-generated-tokens"] == 4
    assert counted["x-total-tokens"] == counted["x-prompt-tokens"] + 4
    assert counted["x-total-time"] >= counted["x-time-to-first-token"]
    base = http.post("/generate", json=body())
    assert "x-adapter-id" not in base.headers


def test_latest_names_the_version_that_answered(server: Any, http: httpx.Client) -> None:
    adapter = server.adapters[0]
    name = adapter.split("/")[0]
    reply = http.post("/generate", json=body(adapter_id=f"{name}/latest"))
    latest = [each for each in server.adapters if each.split("/")[0] == name][-1]
    assert reply.headers["x-adapter-id"] == latest


@pytest.mark.parametrize("path", ["/generate_stream", "/"])
def test_a_native_stream_has_no_done(server: Any, http: httpx.Client, path: str) -> None:
    reply = http.post(
        path, json=body(adapter_id=server.adapters[0], details=True) | {"stream": True}
    )
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["x-accel-buffering"] == "no"
    assert reply.headers["x-adapter-id"] == server.adapters[0]
    found = events(reply.text)
    assert len(found) == 4
    assert all(set(event) == {"token", "generated_text", "details"} for event in found)
    assert found[-1]["generated_text"] == "".join(event["token"]["text"] for event in found)
    assert set(found[-1]["details"]) == {
        "finish_reason",
        "prompt_tokens",
        "generated_tokens",
        "seed",
    }


@pytest.mark.parametrize(
    ("parameters", "error_type"),
    [({"top_k": 0}, "validation"), ({"adapter_id": "nobody/1"}, "generation")],
)
def test_a_stream_that_fails_is_a_200_with_an_error_event(
    server: Any, http: httpx.Client, parameters: dict[str, Any], error_type: str
) -> None:
    reply = http.post("/generate_stream", json=body(**parameters))
    assert reply.status_code == 200
    (event,) = events(reply.text)
    assert set(event) == {"error", "error_type"}
    assert event["error_type"] == error_type
    assert http.post("/generate", json=body(**parameters)).json() == event


@pytest.mark.parametrize("name", ["a\r\nx-evil: 1", "é😀", "nobody/1"])
def test_a_callers_own_words_are_no_header(server: Any, http: httpx.Client, name: str) -> None:
    reply = http.post("/generate_stream", json=body(adapter_id=name))
    assert reply.status_code == 200
    assert events(reply.text)[0]["error_type"] == "generation"
    assert not {"x-adapter-id", "x-evil"} & set(reply.headers)


@pytest.mark.parametrize(
    ("parameters", "status", "error_type"),
    [
        ({"temperature": -1}, 422, "validation"),
        ({"adapter_source": "ftp"}, 424, "generation"),
        ({"adapter_id": "nobody/1"}, 424, "generation"),
        ({"adapter_id": "../../etc/passwd"}, 424, "generation"),
        ({"adapter_id": "/etc"}, 424, "generation"),
    ],
)
def test_failures_have_loraxs_status_and_type(
    server: Any, http: httpx.Client, parameters: dict[str, Any], status: int, error_type: str
) -> None:
    reply = http.post("/generate", json=body(**parameters))
    assert (reply.status_code, reply.json()["error_type"]) == (status, error_type)


@pytest.mark.parametrize(
    ("content", "media", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"{}", "application/json", 422),
        (b'{"inputs": 3}', "application/json", 422),
        (b'{"inputs": "x", "parameters": {"top_k": "a"}}', "application/json", 422),
        (b'{"inputs": "x", "parameters": {"response_format": {"type": "xml"}}}', "application/json", 422),
        (b'{"inputs": "x"}', "text/plain", 415),
        (b'{"inputs": "' + b"x" * 2_100_000 + b'"}', "application/json", 413),
    ],
    ids=["not JSON", "not UTF-8", "no inputs", "inputs of another type", "a parameter of another type", "another form of output", "media type", "too long"],
)  # fmt: skip
def test_a_body_that_cannot_be_read_is_plain_text(
    server: Any, http: httpx.Client, content: bytes, media: str, status: int
) -> None:
    reply = http.post("/generate", content=content, headers={"content-type": media})
    assert reply.status_code == status
    assert reply.headers["content-type"].startswith("text/plain")


def test_tokenize(server: Any, http: httpx.Client) -> None:
    found = http.post("/tokenize", json={"inputs": "hello world"}).json()
    assert found
    assert all(set(token) == {"id", "text", "start", "stop"} for token in found)
    assert found[-1]["stop"] == len("hello world")
    assert len(http.post("/tokenize", json={"inputs": "hello world" * 3000}).json()) > 3000


@pytest.mark.parametrize("path", ["/", "/health", "/ping", "/ready", "/startup"])
def test_a_healthy_server_answers_empty(server: Any, http: httpx.Client, path: str) -> None:
    reply = http.get(path)
    assert (reply.status_code, reply.content) == (200, b"")


def test_info_has_loraxs_fields(server: Any, http: httpx.Client) -> None:
    found = http.get("/info").json()
    assert found["model_id"] == server.base_id
    assert found["max_total_tokens"] > found["max_input_length"] > 0
    assert set(found) == {
        "model_id", "model_sha", "model_dtype", "model_device_type", "model_pipeline_tag", "max_concurrent_requests",
        "max_best_of", "max_stop_sequences", "max_input_length", "max_total_tokens", "waiting_served_ratio",
        "max_batch_total_tokens", "max_waiting_tokens", "validation_workers", "eager_prefill", "version", "sha",
        "docker_label", "request_logger_url",
    }  # fmt: skip


def test_metrics_carry_the_adapter(server: Any, http: httpx.Client) -> None:
    adapter = server.adapters[0]
    http.post("/generate", json=body(adapter_id=adapter))
    text = http.get("/metrics").text
    assert f'lorax_request_success{{adapter="{adapter}"}}' in text
    assert "lorax_queue_length 0.0" in text
    assert f'lorax_request_time_to_first_token_duration_bucket{{adapter="{adapter}"' in text


def test_a_caller_that_goes_away_frees_its_row(server: Any, http: httpx.Client) -> None:
    long = body(max_new_tokens=400)
    with http.stream("POST", "/generate_stream", json=long) as reply:
        next(reply.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        http.post("/generate", json=long, timeout=0.05)
    deadline = time.monotonic() + 5
    while "lorax_batch_current_size 0.0" not in http.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert 'err="dropped"' in http.get("/metrics").text


def test_what_is_not_served_is_a_404(server: Any, http: httpx.Client) -> None:
    assert http.post("/embed", json={"inputs": "x"}).status_code == 404
    assert http.get("/generate").status_code == 405
