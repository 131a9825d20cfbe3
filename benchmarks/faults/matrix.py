"""Every cell against one router process: faults first, then all backends healed and every breaker's probe.

Says what happened; whether that is right is in `rules`.
"""

import asyncio
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.callers import Callers, Outcome
from benchmarks.faults.cells import BREAKER_FAILURES, OPEN_FOR_SECONDS, TOTAL_SECONDS, Cell, policy
from benchmarks.faults.process import Running, router
from benchmarks.faults.upstream import FAULTS, Fault, FaultServer
from router.records import Record

AT_ONCE = 4
"""Callers of one cell."""
CELLS_AT_ONCE = 8
PROBES = 3
"""Requests of a cell after its backend was healed."""
SETTLE_SECONDS = 0.3


@dataclass(slots=True)
class CellResult:
    """What happened in one cell. `records` are the log's, by the ids that callers were told."""

    cell: Cell
    outcomes: list[Outcome] = field(default_factory=list)
    healed: list[Outcome] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)
    breaker: str = ""
    """Of the backend at fault, when the cell's requests were through."""
    breaker_healed: str = ""

    @property
    def lost(self) -> int:
        """Replies, errors and broken ones too, that the log knows nothing of."""
        return sum(bool(o.id) and o.id not in self.records for o in (*self.outcomes, *self.healed))

    @property
    def fell_back(self) -> int:
        """Requests that the teacher answered in the student's place."""
        found = [self.records.get(o.id) for o in self.outcomes]
        return sum(r is not None and r.arm == "student" and r.served_by == "teacher" for r in found)

    @property
    def failures(self) -> int:
        """Answers of the backend at fault that went wrong, as the log has them."""
        role = "teacher" if self.cell.who == "teacher" else "student"
        found = [self.records[o.id] for o in self.outcomes if o.id in self.records]
        return sum(a.error is not None for r in found for a in r.answers if a.role == role)

    @property
    def p50_seconds(self) -> float:
        """The middle caller's wait."""
        return statistics.median(o.seconds for o in self.outcomes)

    @property
    def max_seconds(self) -> float:
        """The longest wait of a caller."""
        return max(o.seconds for o in self.outcomes)

    def count(self, kind: str) -> int:
        """Callers who saw that."""
        return sum(o.kind == kind for o in self.outcomes)


def num_requests(cell: Cell) -> int:
    """Requests of a cell; a canary's are twice as many, because half of them go to the other arm."""
    return (4 if cell.mode == "canary" else 2) * (BREAKER_FAILURES + 1)


async def run(
    cells: Sequence[Cell],
    home: Path,
    told: Callable[[], None],
    open_for_seconds: float = OPEN_FOR_SECONDS,
    patience: float = 1.0,
) -> list[CellResult]:
    """The cells' results, in order. `told` is called after each cell, `patience` lengthens every timeout."""
    servers = {fault: FaultServer(fault) for fault in FAULTS}
    try:
        for server in servers.values():
            await server.start()
        ports: dict[Fault, int] = {fault: server.port for fault, server in servers.items()}
        text = policy(list(cells), ports, open_for_seconds, patience)
        async with router(home, text) as running:
            asking = _Asking(running, patience)
            results = [CellResult(cell) for cell in cells]
            await asking.ask_all(results, told)
            for server in servers.values():
                await server.heal()
            await asyncio.sleep(open_for_seconds + 0.2)
            await asking.probe_all(results)
            await _read_log(results, running)
            return results
    finally:
        for server in servers.values():
            await server.stop()


class _Asking:
    """The callers of all cells."""

    def __init__(self, running: Running, patience: float) -> None:
        self._running = running
        self._patience = patience
        self._slots = asyncio.Semaphore(CELLS_AT_ONCE)

    async def ask_all(self, results: Sequence[CellResult], told: Callable[[], None]) -> None:
        """While the faults last."""

        async def one(found: CellResult) -> None:
            async with self._slots:
                await self._ask(found)
                told()

        # Copies that nobody waits for must not slow the caller: that is timed with nothing else under way.
        timed = [found for found in results if found.cell.mode == "dark_launch"]
        await asyncio.gather(*(one(found) for found in results if found not in timed))
        for found in timed:
            await one(found)

    async def probe_all(self, results: Sequence[CellResult]) -> None:
        """Once every backend is healed and the breakers let a probe through."""
        await asyncio.gather(*(self._probe(found) for found in results))
        await asyncio.sleep(0.5 * self._patience)
        breakers = await self._running.breakers()
        for found in results:
            found.breaker_healed = breakers[found.cell.backend]

    async def _ask(self, found: CellResult) -> None:
        cell, callers = found.cell, Callers.of(self._running.url, self._patience)
        todo = list(range(num_requests(cell)))

        async def one() -> None:
            while todo:
                await callers.ask(cell.name, todo.pop(0), stream=cell.is_stream)

        async with callers.client:
            await asyncio.gather(*(one() for _ in range(AT_ONCE)))
        found.outcomes = callers.outcomes
        if cell.mode == "dark_launch" and cell.who != "teacher" and cell.fault != "none":
            await asyncio.sleep((TOTAL_SECONDS + 0.2) * self._patience)  # its copies are under way
        found.breaker = (await self._running.breakers())[cell.backend]

    async def _probe(self, found: CellResult) -> None:
        """One request after the other: the first is the breaker's probe."""
        async with self._slots:
            callers = Callers.of(self._running.url, self._patience)
            async with callers.client:
                for number in range(PROBES if found.cell.mode != "canary" else 4 * PROBES):
                    await callers.ask(found.cell.name, 100 + number, stream=found.cell.is_stream)
                    if found.cell.mode == "dark_launch":
                        await asyncio.sleep(0.05 * self._patience)  # the copy is the probe
            found.healed = callers.outcomes


async def _read_log(results: Sequence[CellResult], running: Running) -> None:
    """Give each result its records. A record is there before the reply ends, a copy's answer a little later."""
    await asyncio.sleep(SETTLE_SECONDS if any(r.cell.mode == "dark_launch" for r in results) else 0)
    records = running.records()
    for found in results:
        ids = [o.id for o in (*found.outcomes, *found.healed)]
        found.records = {number: records[number] for number in ids if number in records}
