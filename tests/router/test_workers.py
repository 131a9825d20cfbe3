"""Several workers as real processes: one port, one log, one metrics page; a worker that dies is replaced."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from router.traffic import scan
from tests.router.conftest import Behaviour, policy_text
from tests.router.test_faults import free_port

BODY = {"model": "mail", "messages": [{"role": "user", "content": "hello"}]}


@contextmanager
def workers(
    home: Path, address: str, count: int
) -> Iterator[tuple[str, str, subprocess.Popen[str]]]:
    """Addresses for callers and operators, and the parent."""
    policy = home / "policy.yaml"
    policy.write_text(policy_text(address))
    port, admin = free_port(), free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "graduate", "router", "serve", "--policy", str(policy), "--home", str(home),
         "--port", str(port), "--admin-port", str(admin), "--workers", str(count)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        url, pages = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}"
        until(
            lambda: up(url) and up(pages), process, 60
        )  # three processes start; machines are busy
        yield url, pages, process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False, timeout=1).status_code == 200
    except httpx.HTTPError:
        return False


def until(holds, process: subprocess.Popen[str], seconds: float = 20) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def metric(pages: str, name: str) -> float:
    text = httpx.get(f"{pages}/metrics", trust_env=False).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def children(process: subprocess.Popen[str]) -> list[int]:
    """The workers: children of the parent that listen (multiprocessing has a helper of its own)."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [
        int(pid) for pid in listed if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@pytest.mark.slow
def test_one_port_one_log_one_metrics_page(
    tmp_path: Path, shared_upstream: tuple[str, Behaviour], behaviour: Behaviour
) -> None:
    with workers(tmp_path, shared_upstream[0], 2) as (url, pages, process):
        for _ in range(60):  # a connection each: the kernel spreads connections, not requests
            assert (
                httpx.post(f"{url}/v1/chat/completions", json=BODY, trust_env=False).status_code
                == 200
            )
        until(lambda: metric(pages, "graduate_router_requests_total") == 60, process, 2)
        records = list(scan(tmp_path / "traffic"))
        assert len({r.id for r in records}) == 60
        assert len({r.id.split("-")[0] for r in records}) == 2, "one worker had all"
        policy = httpx.get(f"{pages}/policy", trust_env=False).json()
        assert policy["breakers"] == {"students": "closed", "up": "closed"}
        text = httpx.get(f"{pages}/metrics", trust_env=False).text
        assert re.findall(r'policy_info\{digest="(\w+)"\} 1.0', text) == [policy["digest"]]
        (tmp_path / "policy.yaml").write_text(policy_text(shared_upstream[0], mode="dark_launch"))
        until(
            lambda: metric(pages, 'graduate_router_policy_loads_total{result="ok"}') == 2,
            process,
            3,
        )
    assert not up(url)
    assert process.returncode == 0


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_waiting_callers_are_served(
    tmp_path: Path, shared_upstream: tuple[str, Behaviour], behaviour: Behaviour
) -> None:
    with workers(tmp_path, shared_upstream[0], 2) as (url, pages, process):
        first = children(process)
        assert len(first) == 2
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        # Both are dead: the connection waits in the parent's sockets until a worker is there again.
        reply = httpx.post(f"{url}/v1/chat/completions", json=BODY, trust_env=False, timeout=20)
        assert reply.status_code == 200
        until(lambda: len(children(process)) == 2, process)
        assert not set(children(process)) & set(first)
        until(lambda: metric(pages, "graduate_router_requests_total") == 1, process, 2)


@pytest.mark.slow
def test_workers_stop_when_their_parent_is_killed(
    tmp_path: Path, shared_upstream: tuple[str, Behaviour], behaviour: Behaviour
) -> None:
    with workers(tmp_path, shared_upstream[0], 2) as (url, _, process):
        pids = children(process)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert not up(url)
