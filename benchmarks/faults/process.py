"""The router as a process of its own, on free ports, and what its log and its admin pages say."""

import asyncio
import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.router.processes import ROOT, free_port
from router.records import Record
from router.traffic import scan

START_SECONDS = 40.0


class DidNotStart(Exception):
    """The router ended or said nothing; the message has what it printed."""


@dataclass(slots=True)
class Running:
    """A running router. `said` is the file that it prints to."""

    home: Path
    url: str
    admin: str
    process: subprocess.Popen[bytes]
    said: Path

    @property
    def policy(self) -> Path:
        """Its policy file."""
        return self.home / "policy.yaml"

    async def page(self, path: str) -> httpx.Response:
        """An admin page."""
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            return await client.get(f"{self.admin}{path}")

    async def breakers(self) -> dict[str, str]:
        """Each backend's breaker."""
        found: dict[str, str] = (await self.page("/policy")).json()["breakers"]
        return found

    async def metric(self, name: str) -> float:
        """Sum of a metric over its labels."""
        text = (await self.page("/metrics")).text
        lines = [line for line in text.splitlines() if re.match(rf"{name}[{{ ]", line)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    async def ready(self) -> dict[str, Any]:
        """What `/ready` says."""
        found: dict[str, Any] = (await self.page("/ready")).json()
        return found

    def records(self) -> dict[str, Record]:
        """The log's records by id, late answers laid over them."""
        return {record.id: record for record in scan(self.home / "traffic")}

    def workers(self) -> list[int]:
        """Worker processes (multiprocessing has a helper of its own beside them)."""
        pid = self.process.pid
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(p) for p in listed if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]

    async def ended(self, seconds: float = 20.0) -> int:
        """Its exit status, once it has ended."""
        return await asyncio.to_thread(self.process.wait, seconds)


@contextlib.asynccontextmanager
async def router(
    home: Path, policy: str, *, workers: int = 1, file_limit: int | None = None
) -> AsyncIterator[Running]:
    """A router that is ready.

    Args:
        file_limit: bytes that a file of its may have: what a full disk looks like.

    Raises:
        DidNotStart: it did not.
    """

    found, printer = _start(home, policy, workers, file_limit)
    process = found.process
    try:
        await _until_ready(found)
        yield found
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await found.ended(15)
            process.kill()
            process.wait()
        await asyncio.to_thread(printer.wait)


def _start(
    home: Path, policy: str, workers: int, file_limit: int | None
) -> tuple[Running, subprocess.Popen[bytes]]:
    """The router, and the `cat` that writes what it prints: the file limit must hold for the log alone."""

    def limit() -> None:
        if file_limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    home.mkdir(parents=True, exist_ok=True)
    (home / "policy.yaml").write_text(policy)
    port, admin = free_port(), free_port()
    said = home / "said.log"
    with said.open("wb") as out:
        printer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=out)
    assert printer.stdin is not None
    process = subprocess.Popen(
        [sys.executable, "-m", "graduate", "router", "serve", "--policy", str(home / "policy.yaml"),
         "--home", str(home), "--port", str(port), "--admin-port", str(admin), "--workers", str(workers)],
        cwd=ROOT, stdout=printer.stdin, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        preexec_fn=limit, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    printer.stdin.close()
    url, pages = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}"
    return Running(home, url, pages, process, said), printer


async def _until_ready(found: Running) -> None:
    deadline = time.monotonic() + START_SECONDS
    async with httpx.AsyncClient(trust_env=False, timeout=2) as client:
        while True:
            try:
                for page in (f"{found.url}/ready", f"{found.admin}/ready"):
                    (await client.get(page)).raise_for_status()
                return
            except httpx.HTTPError:
                if found.process.poll() is not None or time.monotonic() > deadline:
                    raise DidNotStart(found.said.read_text() or "it printed nothing") from None
                await asyncio.sleep(0.05)
