"""What happens to a whole router under load: killed, stopped, its disk full, its policy spoiled. Says what callers saw."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.callers import Callers, Outcome
from benchmarks.faults.cells import Cell, policy
from benchmarks.faults.process import Running, router
from benchmarks.faults.rules import nothing_lost
from benchmarks.faults.upstream import FAULTS, FaultServer
from router.records import Record

CLIENTS = 12
LOAD_SECONDS = 1.5
UPSTREAM_SECONDS = 0.03
"""How long a reply takes, so that requests are under way whenever something happens."""
FILE_LIMIT = 40_000
"""Bytes of a log segment on the full disk."""
SPOILED: dict[str, bytes | None] = {
    "no YAML": b"version: [1\n",
    "not text": bytes(range(256)),
    "empty": b"",
    "an unknown key": b"version: 1\nbackend: {}\n",
    "deleted": None,
}
CELLS = [
    Cell("lorax", "none", "canary", "whole"),
    Cell("lorax", "cut", "student", "whole"),
    Cell("lorax", "none", "student", "pass"),
    Cell("teacher", "none", "teacher", "whole"),
]
"""Load of every kind: both arms, a student that is always replaced, streams passed on, the teacher alone."""


@dataclass(slots=True)
class EventResult:
    """One event. `notes` are what else was seen, `broken` the rules that did not hold."""

    name: str
    outcomes: list[Outcome] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)
    dropped: int = 0
    """Lines that the router says the disk refused."""
    notes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Answers that callers had whole (or as errors) and that the log has not, the counted drops aside."""
        ended = [o for o in self.outcomes if o.kind in ("whole", "refused", "as-came")]
        return max(0, sum(o.id not in self.records for o in ended) - self.dropped)

    @property
    def fell_back(self) -> int:
        """Requests that the teacher answered in the student's place."""
        found = [self.records.get(o.id) for o in self.outcomes]
        return sum(r is not None and r.arm == "student" and r.served_by == "teacher" for r in found)

    def count(self, kind: str) -> int:
        """Callers who saw that."""
        return sum(o.kind == kind for o in self.outcomes)

    def must(self, holds: bool, otherwise: str) -> None:
        """Note a rule that does not hold."""
        if not holds:
            self.broken.append(otherwise)


Act = Callable[[Running, EventResult], Awaitable[None]]


async def run(name: str, home: Path) -> EventResult:
    """Load, the event in the middle of it, and what is left."""
    act, workers, file_limit = EVENTS[name]
    found = EventResult(name)
    servers = {fault: FaultServer(fault, UPSTREAM_SECONDS) for fault in FAULTS if fault != "hang"}
    try:
        for server in servers.values():
            await server.start()
        text = policy(CELLS, {fault: server.port for fault, server in servers.items()})
        async with router(home, text, workers=workers, file_limit=file_limit) as running:
            await _under_load(running, found, act)
        found.records = running.records()
    finally:
        for server in servers.values():
            await server.stop()
    found.broken += nothing_lost(found.outcomes, found.lost)
    return found


async def _under_load(running: Running, found: EventResult, act: Act) -> None:
    is_over = False
    callers = Callers.of(running.url)
    async with callers.client:
        models = [cell.name for cell in CELLS]
        load = asyncio.create_task(callers.load(models, CLIENTS, lambda: is_over, stream=None))
        await asyncio.sleep(LOAD_SECONDS)
        found.must(callers.outcomes != [], "nothing was answered before the event")
        await act(running, found)
        is_over = True
        await load
    found.outcomes = callers.outcomes
    if running.process.poll() is None:  # counted when no request is under way any more
        found.dropped = int((await running.ready()).get("log_dropped", 0))
        missing = len(found.outcomes) - len(running.records())
        found.must(found.dropped == 0 or found.dropped >= missing, "drops were not all counted")


async def _killed(running: Running, found: EventResult) -> None:
    running.process.kill()
    await running.ended()
    await asyncio.sleep(0.2)


async def _worker_killed(running: Running, found: EventResult) -> None:
    first = running.workers()
    os.kill(first[0], signal.SIGKILL)
    began = time.monotonic()
    while len(set(running.workers()) - set(first)) < 1 and time.monotonic() - began < 10:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0.05)
    found.notes.append(f"another worker after {time.monotonic() - began:.1f} s")
    await asyncio.sleep(2 * LOAD_SECONDS)
    found.must(len(running.workers()) == 2, "the worker was not replaced")


async def _terminated(running: Running, found: EventResult) -> None:
    began = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    status = await running.ended(25)
    found.notes.append(f"ended with {status} after {time.monotonic() - began:.1f} s")
    found.must(status == 0, f"exit status {status}")
    left = list((running.home / "traffic").glob("*.open.jsonl"))
    found.must(not left, f"segments left open: {left}")
    await asyncio.sleep(0.2)


async def _disk_full(running: Running, found: EventResult) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not (await running.ready()).get("log_dropped"):  # noqa: ASYNC110 - nor of this
        await asyncio.sleep(0.1)
    await asyncio.sleep(LOAD_SECONDS)
    found.must("log_error" in await running.ready(), "/ready does not tell of the full disk")


async def _spoiled(running: Running, found: EventResult) -> None:
    good = running.policy.read_text()
    digest = (await running.page("/policy")).json()["digest"]
    for what, data in SPOILED.items():
        if data is None:
            running.policy.unlink()
        else:
            running.policy.write_bytes(data)
        await asyncio.sleep(1.2)
        seen = (await running.page("/policy")).json()
        found.must(seen["digest"] == digest, f"policy {what}: the last good one is not in force")
        found.must(bool(seen["error"]), f"policy {what}: the admin page does not say so")
    running.policy.write_text(good + "\n# edited\n")
    await asyncio.sleep(1.5)
    seen = (await running.page("/policy")).json()
    found.must(seen["error"] is None, f"a good policy was not taken: {seen['error']}")
    loads = await running.metric("graduate_router_policy_loads_total")
    found.notes.append(f"{loads:.0f} policies read, {len(SPOILED)} of them refused")


EVENTS: dict[str, tuple[Act, int, int | None]] = {
    "kill -9": (_killed, 1, None),
    "worker kill -9": (_worker_killed, 2, None),
    "SIGTERM": (_terminated, 1, None),
    "disk full": (_disk_full, 1, FILE_LIMIT),
    "policy spoiled": (_spoiled, 1, None),
}
"""Name: what happens, with how many workers, and how large a file may grow."""
