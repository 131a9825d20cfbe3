"""Keys: only good ones get in, each to its routes and at its rate; and the commands that make them."""

import asyncio
import datetime
import json
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from typer.testing import CliRunner

from router import auth
from router.app import Router
from router.cli import app
from router.errors import PolicyError, Unauthorized
from router.settings import RouterSettings
from tests.router.conftest import Behaviour, Live, Start, policy_text

NOW = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)


class Keys:
    """A key file beside the policy, and the keys that are in it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.yaml"
        self.entries: list[auth.KeyEntry] = []
        auth.write(self.path, auth.KeyFile())

    def add(self, name: str, **more: Any) -> str:
        key, entry = auth.issue(name, created=NOW, **more)
        self.entries.append(entry)
        auth.write(self.path, auth.KeyFile(keys=tuple(self.entries)))
        return key


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def guarded(start: Start, address: str, **more: Any) -> Live:
    policy = yaml.safe_load(policy_text(address, **more)) | {"keys": {"file": "keys.yaml"}}
    return start(text=yaml.safe_dump(policy))


def ask(live: Live, key: str | None, **more: Any) -> httpx.Response:
    return live.ask(headers={"authorization": f"Bearer {key}"} if key else {}, **more)


def test_only_a_known_key_gets_in(
    start: Start, shared_upstream: tuple[str, Behaviour], behaviour: Behaviour, keys: Keys
) -> None:
    key = keys.add("checkout")
    live = guarded(start, shared_upstream[0])
    assert ask(live, key).status_code == 200
    refused = [ask(live, None), ask(live, "grad-wrong"), ask(live, key + "x")]
    assert [r.status_code for r in refused] == [401, 401, 401]
    assert refused[0].json()["error"]["type"] == "authentication_error"
    assert len(behaviour.seen) == 1, "a refused request reached a backend"
    assert live.records()[0].caller == "checkout"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/models", "/v1/feedback"])
def test_every_path_asks_for_a_key(
    start: Start, shared_upstream: tuple[str, Behaviour], keys: Keys, path: str
) -> None:
    key = keys.add("checkout")
    live = guarded(start, shared_upstream[0])
    method = "GET" if path == "/v1/models" else "POST"
    body = {"id": "r-1", "score": 1.0} if path == "/v1/feedback" else {"input": "x", "model": "e"}
    without = live.client.request(method, path, json=body)
    assert without.status_code == 401
    assert "API key" in without.json()["error"]["message"]
    with_key = live.client.request(method, path, json=body, headers={"x-api-key": key})
    assert with_key.status_code in (200, 202)


def test_our_key_reaches_no_backend(
    start: Start,
    shared_upstream: tuple[str, Behaviour],
    behaviour: Behaviour,
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = keys.add("checkout")
    live = guarded(start, shared_upstream[0], mode="student", canary={"audit": 0})
    ask(live, key)
    live.client.post("/v1/embeddings", json={"input": "x"}, headers={"api-key": key})
    assert len(behaviour.seen) == 2
    for _, headers, _ in behaviour.seen:
        assert key not in " ".join(headers.values())


def test_the_backends_key_goes_in_the_header_that_the_caller_used(
    start: Start,
    shared_upstream: tuple[str, Behaviour],
    behaviour: Behaviour,
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-teacher")
    key = keys.add("checkout")
    policy = yaml.safe_load(policy_text(shared_upstream[0])) | {"keys": {"file": "keys.yaml"}}
    policy["backends"]["up"]["api_key_env"] = "TEACHER_KEY"
    live = start(text=yaml.safe_dump(policy))
    live.client.post("/v1/embeddings", json={"input": "x"}, headers={"x-api-key": key})
    ask(live, key)
    (_, first, _), (_, second, _) = behaviour.seen
    assert first["x-api-key"] == "sk-teacher"
    assert "authorization" not in first
    assert second["authorization"] == "Bearer sk-teacher"


def test_a_key_is_for_its_routes_only(
    start: Start, shared_upstream: tuple[str, Behaviour], behaviour: Behaviour, keys: Keys
) -> None:
    mail, other = keys.add("mail", routes=["mail"]), keys.add("other", routes=["default"])
    live = guarded(start, shared_upstream[0])
    assert ask(live, mail).status_code == 200
    forbidden = [
        ask(live, other),
        ask(live, mail, model="gpt-x"),
        live.client.post("/v1/embeddings", json={}, headers={"x-api-key": mail}),
    ]
    assert [r.status_code for r in forbidden] == [403, 403, 403]
    assert "allowed: default" in forbidden[0].json()["error"]["message"]
    assert len(behaviour.seen) == 1
    listed = live.client.get("/v1/models", headers={"x-api-key": other}).json()["data"]
    assert [m["id"] for m in listed] == ["gpt-x"]


def test_requests_a_minute(
    start: Start, shared_upstream: tuple[str, Behaviour], behaviour: Behaviour, keys: Keys
) -> None:
    key = keys.add("checkout", requests_per_minute=3)
    live = guarded(start, shared_upstream[0])
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key=key, max_retries=0)
    for _ in range(3):
        client.chat.completions.create(model="mail", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="mail", messages=[{"role": "user", "content": "x"}])
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 20
    assert len(behaviour.seen) == 3
    assert live.metric('graduate_router_refusals_total{status="429"}') == 1


def test_tokens_a_minute_are_known_afterwards(
    start: Start, shared_upstream: tuple[str, Behaviour], keys: Keys
) -> None:
    key = keys.add("checkout", tokens_per_minute=20)  # an answer of the upstream costs 12
    live = guarded(start, shared_upstream[0])
    statuses = [ask(live, key).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


def test_a_revoked_key_is_refused_within_two_seconds(
    start: Start, shared_upstream: tuple[str, Behaviour], keys: Keys
) -> None:
    key = keys.add("checkout")
    live = guarded(start, shared_upstream[0])
    assert ask(live, key).status_code == 200
    result = CliRunner().invoke(app, ["keys", "revoke", "checkout", "--file", str(keys.path)])
    assert result.exit_code == 0
    deadline = time.monotonic() + 2
    while ask(live, key).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert ask(live, key).status_code == 401


def test_a_key_file_that_does_not_hold_leaves_the_last_good_one(
    start: Start, shared_upstream: tuple[str, Behaviour], keys: Keys
) -> None:
    key = keys.add("checkout")
    live = guarded(start, shared_upstream[0])
    keys.path.write_text("version: 1\nkeys:\n- {name: a b, hash: md5:1}\n")
    deadline = time.monotonic() + 2
    while "policy_error" not in httpx.get(f"{live.admin}/ready", trust_env=False).json():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "keys.0.name" in httpx.get(f"{live.admin}/ready", trust_env=False).json()["policy_error"]
    assert ask(live, key).status_code == 200


def test_a_key_for_a_route_that_is_not_there_is_refused(tmp_path: Path, keys: Keys) -> None:
    from router import policy_file

    keys.add("checkout", routes=["mial"])
    policy = tmp_path / "policy.yaml"
    text = yaml.safe_load(policy_text("http://127.0.0.1:1")) | {"keys": {"file": "keys.yaml"}}
    policy.write_text(yaml.safe_dump(text))
    loaded = policy_file.load(policy, None, tmp_path)
    with pytest.raises(PolicyError, match=r"keys.checkout.routes = 'mial'.*allowed: default, mail"):
        auth.ring_of(loaded)


def test_a_check_reads_the_key_file_as_the_router_would(tmp_path: Path, keys: Keys) -> None:
    policy = tmp_path / "policy.yaml"
    text = yaml.safe_load(policy_text("http://127.0.0.1:1")) | {"keys": {"file": "keys.yaml"}}
    policy.write_text(yaml.safe_dump(text))
    check = ["check", str(policy), "--home", str(tmp_path)]
    assert CliRunner().invoke(app, check).exit_code == 0
    keys.path.write_text("version: 1\nkeys:\n- {name: a b, hash: md5:1}\n")
    refused = CliRunner().invoke(app, check)
    assert refused.exit_code == 2
    assert "keys.0.name = 'a b'" in refused.stderr


@pytest.mark.parametrize(
    ("host", "open_", "starts"),
    [("127.0.0.1", False, True), ("::1", False, True), ("localhost", False, True), ("0.0.0.0", False, False),
     ("10.1.2.3", False, False), ("router.example", False, False), ("0.0.0.0", True, True)],
)  # fmt: skip
def test_without_keys_only_loopback_is_served(
    tmp_path: Path, host: str, open_: bool, starts: bool
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(policy_text("http://127.0.0.1:1"))
    settings = RouterSettings(policy, tmp_path, host, open=open_)

    async def build() -> None:
        Router.build(settings).close()

    if starts:
        asyncio.run(build())
        return
    with pytest.raises(PolicyError, match="without keys the router listens on loopback only"):
        asyncio.run(build())


def test_an_edit_that_takes_the_keys_away_is_refused_where_others_could_come_in(
    start: Start, shared_upstream: tuple[str, Behaviour], keys: Keys
) -> None:
    keys.add("checkout")
    text = yaml.safe_load(policy_text(shared_upstream[0])) | {"keys": {"file": "keys.yaml"}}
    live = start(text=yaml.safe_dump(text), settings={"host": "0.0.0.0"})
    live.policy.write_text(policy_text(shared_upstream[0]))
    deadline = time.monotonic() + 2
    while "policy_error" not in httpx.get(f"{live.admin}/ready", trust_env=False).json():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert ask(live, None).status_code == 401


def test_an_expired_key_is_refused() -> None:
    key, entry = auth.issue("checkout", created=NOW, expires=NOW + datetime.timedelta(hours=1))
    ring = auth.KeyRing({entry.hash: entry})
    headers = {"authorization": f"Bearer {key}"}
    assert ring.identify(headers, NOW.timestamp() + 3599) == entry
    with pytest.raises(Unauthorized, match="expired"):
        ring.identify(headers, NOW.timestamp() + 3600)


def test_the_commands(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    run = CliRunner()
    made = run.invoke(
        app,
        ["keys", "add", "checkout", "--file", str(file), "--route", "mail", "--tokens-per-minute", "9",
         "--expires", "90d", "--json"],
    )  # fmt: skip
    key = json.loads(made.stdout)["key"]
    assert key not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0, "others may read the key file"
    listed = json.loads(run.invoke(app, ["keys", "list", "--file", str(file), "--json"]).stdout)
    assert [(e["name"], e["routes"], e["tokens_per_minute"]) for e in listed] == [
        ("checkout", ["mail"], 9)
    ]
    ring = auth.KeyRing({entry.hash: entry for entry in auth.read(file).keys})
    assert ring.identify({"authorization": f"bearer {key}"}, time.time()).name == "checkout"
    assert "checkout" in run.invoke(app, ["keys", "list", "--file", str(file)]).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "checkout"], "has a key of 'checkout' already"),
        (["add", "a b"], "name = 'a b'"),
        (["add", "x", "--expires", "soon"], "allowed: a duration"),
        (["revoke", "nobody"], "there are: checkout"),
    ],
)
def test_what_the_commands_refuse(tmp_path: Path, arguments: list[str], said: str) -> None:
    file = tmp_path / "keys.yaml"
    auth.write(file, auth.KeyFile(keys=(auth.issue("checkout", created=NOW)[1],)))
    before = file.read_bytes()
    result = CliRunner().invoke(app, ["keys", *arguments, "--file", str(file)])
    assert result.exit_code == 2
    assert said in result.stderr
    assert file.read_bytes() == before
