"""Bodies that no client should send: never a 500, never a hang, whatever the mode; and the API's own schema, fuzzed."""

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from router.app import CallerApp, Router, running
from router.settings import RouterSettings
from tests.router.conftest import Start, policy_text, serving

GOOD: dict[str, Any] = {
    "model": "mail",
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "image_url"}]},
    ],
    "stream": False, "n": 1, "max_tokens": 5, "user": "ada", "metadata": {"task": "t"}, "tools": None,
    "logprobs": False, "stop": ["\n"], "stream_options": {"include_usage": True}, "temperature": 0.5,
}  # fmt: skip
ODD: list[Any] = [
    None, True, 0, -1, 1.5, 1e308, 10**30, "", "x", "\u0000", "é" * 50, "\ud83d\ude00", [], [None], {}, {"a": {}},
    [[[[]]]], {"role": 1}, [{"role": "user"}], [{"content": "x"}], {"text": []}, ["a", 1, None],
]  # fmt: skip
RAW = [
    b"", b" ", b"null", b"[]", b'"x"', b"1", b"{", b"}", b'{"model":', b"\xff\xfe{}", b'{"model":"mail"}',
    b'{"model":"\\ud800","messages":[]}', b'{"a":' * 2000 + b"1" + b"}" * 2000, b"[" * 100_000, b'{"model":"mail","model":3}',
    b'{"model":"mail","messages":[{"role":"user","content":"\xc3\x28"}]}', b'{"model":"mail","n":1e999}', b"\x00" * 64,
    b'{"model":"mail","messages":[{"role":"user","content":"x"}],"max_tokens":1e3}',
]  # fmt: skip


async def upstream(scope: Any, receive: Any, send: Any) -> None:
    """Answers everything as both kinds of backend, and looks at nothing."""
    while (await receive()).get("more_body"):
        pass
    native = scope["path"].startswith("/generate")
    details = {"finish_reason": "eos_token", "prompt_tokens": 1, "generated_tokens": 1, "seed": None, "prefill": [], "tokens": []}  # fmt: skip
    chat = {"model": "m", "choices": [{"index": 0, "message": {"content": "hi"}, "text": "hi", "finish_reason": "stop"}]}  # fmt: skip
    body = json.dumps({"generated_text": "hi", "details": details} if native else chat).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(upstream) as url:
        yield url


def bodies(seed: int, count: int) -> Iterator[bytes]:
    """`RAW`, then good bodies with fields made odd, dropped, doubled, or bytes cut and flipped."""
    rng = random.Random(seed)
    yield from RAW
    for _ in range(count - len(RAW)):
        body = {
            **GOOD,
            **{k: rng.choice(ODD) for k in rng.sample(list(GOOD), rng.choice((0, 0, 1, 2)))},
        }
        for name in rng.sample(list(GOOD), rng.choice((0, 0, 1, 2))):
            body.pop(name)
        if rng.random() < 0.3 and isinstance(body.get("messages"), list):
            body["messages"] = [*body["messages"], rng.choice(ODD)]
        data = bytearray(
            json.dumps(body, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
        )
        what = rng.random()
        if what < 0.2:
            data = data[: rng.randrange(len(data))]
        elif what < 0.5:
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        yield bytes(data)


async def send_all(home: Path, address: str, mode: str, seed: int, count: int) -> dict[int, int]:
    """How often each status came."""
    more: dict[str, Any] = {}
    if mode == "hybrid":
        easy = {"max_prompt_tokens": 50, "languages": ["en"], "not_matching": ["lawsuit"]}
        more["hybrid"] = {"easy_if": easy}
    policy = yaml.safe_load(policy_text(address, mode, **more))
    policy["routes"]["mail"]["match"] = {}
    policy["routes"] = {
        "by_system": {**policy["routes"]["mail"], "match": {"system_prompt": "/brief$/"}},
        **policy["routes"],
    }
    (home / "policy.yaml").write_text(yaml.safe_dump(policy))
    router = Router.build(RouterSettings(home / "policy.yaml", home))
    statuses: dict[int, int] = {}
    async with running(router):
        transport = httpx.ASGITransport(app=CallerApp(router))
        async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
            for number, body in enumerate(bodies(seed, count)):
                path = ("/v1/chat/completions", "/v1/completions")[number % 5 == 0]
                async with asyncio.timeout(10):
                    reply = await client.post(path, content=body)
                assert reply.status_code < 500, (reply.text, body[:300])
                if reply.status_code >= 400:
                    assert reply.json()["error"]["type"] == "invalid_request_error", body[:300]
                statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
    assert router.services.log.dropped == 0
    return statuses


MODES = ("teacher", "dark_launch", "canary", "hybrid", "student")


@pytest.mark.parametrize("mode", MODES)
def test_no_malformed_body_is_a_500(tmp_path: Path, address: str, mode: str) -> None:
    statuses = asyncio.run(send_all(tmp_path, address, mode, 0, 100))
    assert statuses[400] > 15
    assert statuses[200] > 15


@pytest.mark.slow
def test_ten_thousand_malformed_bodies(tmp_path: Path, address: str) -> None:
    total = 0
    for number, mode in enumerate(MODES):
        (tmp_path / mode).mkdir()
        found = asyncio.run(send_all(tmp_path / mode, address, mode, number + 1, 2000))
        total += sum(found.values())
    assert total == 10_000


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of schemathesis itself
@pytest.mark.parametrize("which", ["callers", "operators"])
def test_the_apis_own_schema_fuzzed(tmp_path: Path, address: str, start: Start, which: str) -> None:
    import schemathesis
    from schemathesis.core.result import Ok

    live = start(text=policy_text(address, "canary"))
    base = live.url if which == "callers" else live.admin
    schema = schemathesis.openapi.from_url(f"{base}/openapi.json")
    found = list(schema.get_all_operations())
    operations = [result.ok() for result in found if isinstance(result, Ok)]
    assert len(operations) == len(found)
    paths = [operation.path for operation in operations]
    wanted = "/v1/chat/completions" if which == "callers" else "/policy"
    assert wanted in paths
    checked = 0
    for operation in operations:

        @settings(
            max_examples=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
        @given(case=operation.as_strategy())
        def fuzz(case: Any) -> None:
            nonlocal checked
            checked += 1
            reply = case.call(timeout=10)
            case.validate_response(reply, checks=[schemathesis.checks.not_a_server_error])

        fuzz()
    assert checked >= (150 if which == "callers" else 4)
