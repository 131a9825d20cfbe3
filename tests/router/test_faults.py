"""The router as a process: killed, starved of disk, started wrongly, ended politely."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

import graduate
from router.traffic import scan
from tests.router.conftest import Behaviour, policy_text

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Process:
    """`graduate router serve` on free ports."""

    def __init__(self, home: Path, policy: Path, file_limit: int | None = None) -> None:
        self.port, self.admin = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"

        def limit() -> None:
            if file_limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "graduate", "router", "serve", "--policy", str(policy), "--home", str(home),
                "--port", str(self.port), "--admin-port", str(self.admin),
            ],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=limit,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

    def wait_ready(self) -> None:
        # Looks, not seconds: a machine that pauses both of us is nobody's fault.
        for _ in range(400):
            try:
                if self.get("/ready").status_code == 200:
                    return
            except httpx.HTTPError:
                assert self.process.poll() is None, self.said()
            time.sleep(0.05)
        pytest.fail("not ready after 400 looks")

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.admin}{path}", trust_env=False)

    def ask(self, client: httpx.Client, text: str = "hello") -> httpx.Response:
        body = {"model": "mail", "messages": [{"role": "user", "content": text}]}
        return client.post(f"{self.url}/v1/chat/completions", json=body)

    def said(self) -> str:
        """Everything it printed, once it has ended."""
        return self.process.communicate(timeout=20)[0].decode()


@contextmanager
def started(
    tmp_path: Path, upstream_address: str, file_limit: int | None = None
) -> Iterator[Process]:
    policy = tmp_path / "policy.yaml"
    policy.write_text(policy_text(upstream_address, "teacher"))
    process = Process(tmp_path, policy, file_limit)
    try:
        process.wait_ready()
        yield process
    finally:
        process.process.kill()
        process.process.communicate()


def test_kill_9_in_mid_traffic_loses_no_answered_request(
    tmp_path: Path, shared_upstream: tuple[str, Behaviour], behaviour: Behaviour
) -> None:
    answered: list[str] = []

    def ask(process: Process) -> None:
        with httpx.Client(trust_env=False, timeout=5) as client:
            try:
                while True:
                    reply = process.ask(client)
                    if reply.status_code == 200 and reply.json()["choices"]:
                        answered.append(reply.headers["x-graduate-request-id"])
            except httpx.HTTPError:
                return

    with started(tmp_path, shared_upstream[0]) as process:
        threads = [threading.Thread(target=ask, args=(process,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        while len(answered) < 150:
            time.sleep(0.01)
        process.process.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join(10)
    logged = {record.id for record in scan(tmp_path / "traffic")}
    assert len(answered) >= 150
    assert set(answered) - logged == set()


def test_a_full_disk_drops_lines_and_no_call(
    tmp_path: Path, shared_upstream: tuple[str, Behaviour], behaviour: Behaviour
) -> None:
    with (
        started(tmp_path, shared_upstream[0], file_limit=8192) as process,
        httpx.Client(trust_env=False) as client,
    ):
        statuses = [process.ask(client, f"{n} " + "x" * 500).status_code for n in range(30)]
        assert statuses == [200] * 30
        ready = process.get("/ready").json()
        assert ready["ready"] is True
        assert "File too large" in ready["log_error"]
        dropped = ready["log_dropped"]
        metrics = process.get("/metrics").text
    assert f"graduate_router_log_drops {float(dropped)}" in metrics
    kept = list(scan(tmp_path / "traffic"))
    assert len(kept) == 30 - dropped
    assert 0 < len(kept) < 30


def test_sigterm_lets_requests_finish_and_closes_the_segment(
    tmp_path: Path, shared_upstream: tuple[str, Behaviour], behaviour: Behaviour
) -> None:
    behaviour.teacher_delay = 0.7
    found: list[int] = []
    with started(tmp_path, shared_upstream[0]) as process, httpx.Client(trust_env=False) as client:
        thread = threading.Thread(target=lambda: found.append(process.ask(client).status_code))
        thread.start()
        time.sleep(0.3)
        process.process.send_signal(signal.SIGTERM)
        thread.join(10)
        assert process.process.wait(10) == 0
    assert found == [200]
    assert len(list(scan(tmp_path / "traffic"))) == 1
    assert [p for p in (tmp_path / "traffic").glob("*.jsonl") if ".open." in p.name] == []


def test_a_bad_policy_is_refused_with_every_problem(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "version: 1\nbackends: {a: {kind: openia, base_url: x}}\ndefault: {teacher: {backend: b}}\n"
    )
    process = Process(tmp_path, policy)
    assert process.process.wait(20) == 2
    said = process.said()
    assert "line 2: backends.a.kind = 'openia'" in said
    assert "line 2: backends.a.base_url = 'x'" in said


def test_an_occupied_port_names_itself_and_the_option(
    tmp_path: Path, shared_upstream: tuple[str, Behaviour]
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(policy_text(shared_upstream[0]))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "graduate", "router", "serve", "--policy", str(policy), "--home", str(tmp_path), "--port", str(port), "--admin-port", "0"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert f"port {port} of 127.0.0.1 (router) cannot be used" in done.stderr
    assert "--port" in done.stderr


def test_a_home_that_cannot_be_written_is_named(
    tmp_path: Path, shared_upstream: tuple[str, Behaviour]
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(policy_text(shared_upstream[0]))
    file = tmp_path / "file"
    file.write_text("in the way")
    process = Process(file, policy)
    assert process.process.wait(20) == 2
    assert str(file) in process.said()


@pytest.mark.parametrize("command", [["check"], ["explain"]])
def test_a_policy_is_checked_without_a_router(
    tmp_path: Path, shared_upstream: tuple[str, Behaviour], command: list[str]
) -> None:
    policy, request = tmp_path / "policy.yaml", tmp_path / "request.json"
    policy.write_text(policy_text(shared_upstream[0], "canary", canary={"steps": ["50%"]}))
    request.write_text(json.dumps({"model": "mail", "messages": []}))
    more = [str(request), "--user", "ada", "--draw", "0.1"] if command == ["explain"] else []
    done = CliRunner().invoke(
        graduate.app, ["router", *command, str(policy), *more, "--home", str(tmp_path), "--json"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    if command == ["explain"]:
        assert (found["route"], found["backend"]) == (
            "mail",
            "students" if found["arm"] == "student" else "up",
        )
    else:
        assert found["routes"] == ["mail"]
