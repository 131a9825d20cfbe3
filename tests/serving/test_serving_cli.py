"""The commands of `graduate serving` as processes: what they print, how they end."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving.place import Place

COMMAND = [sys.executable, "-m", "serving"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "hello", "teacher": "greeting"}\n')
    return file


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_replay_says_where_it_listens_answers_and_ends_on_sigterm(rows: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "replay", str(rows), "--port", "0", "--latency", "1ms", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["rows"] == 1
        body = {"model": "x", "messages": [{"role": "user", "content": "hello"}]}
        reply = httpx.post(f"{ready['address']}/v1/chat/completions", json=body, trust_env=False)
        assert reply.json()["choices"][0]["message"]["content"] == "greeting"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.slow
def test_serve_loads_what_is_pinned_before_it_is_ready(place: Place) -> None:
    with subprocess.Popen(
        [
            *COMMAND, "serve", "--model", str(place.root / "model"), "--adapters", str(place.root / "registry"),
            "--home", str(place.root / "home"), "--pin", "a1", "--port", "0", "--json",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        metrics = httpx.get(f"{ready['address']}/metrics", trust_env=False).text
        assert "graduate_serving_resident_adapters 1.0" in metrics
        unload = {"lora_name": "a1/1"}
        reply = httpx.post(
            f"{ready['address']}/v1/unload_lora_adapter", json=unload, trust_env=False
        )
        assert "is pinned" in reply.text
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--pin", "nobody"], "--pin: adapter 'nobody' is not in the registry"),
        (["--pin", "../x"], "allowed: NAME, NAME/latest or NAME/NUMBER"),
        (["--model", "{root}/nowhere"], "no such file or folder"),
    ],
)
def test_what_serve_refuses(place: Place, arguments: list[str], part: str) -> None:
    given = [each.format(root=place.root) for each in arguments]
    registry = ["--adapters", str(place.root / "registry"), "--home", str(place.root / "home")]
    done = run("serve", "--model", str(place.root / "model"), "--port", "0", *registry, *given)
    assert (done.returncode, part in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["{rows}", "--latency", "50"], "--latency '50': allowed is a duration with its unit"),
        (["{rows}", "--port", "{port}"], "--port {port} cannot be used: Address already in use"),
        (["{rows}", "--input-key", "input"], "{rows}: line 1: no 'input' (--input-key)"),
        (["{rows}x"], "{rows}x: No such file or directory"),
    ],
    ids=["a duration without a unit", "an occupied port", "another key", "no such file"],
)
def test_what_replay_refuses(rows: Path, taken_port: int, arguments: list[str], part: str) -> None:
    filled = [each.format(rows=rows, port=taken_port) for each in arguments]
    done = run("replay", *filled)
    assert done.returncode == 2
    assert part.format(rows=rows, port=taken_port) in done.stderr
    assert "Traceback" not in done.stderr
