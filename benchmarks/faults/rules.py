"""What must hold in every cell and after every event; each rule a function, a broken one is a sentence. Pure."""

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.faults.callers import Outcome
from benchmarks.faults.cells import BREAKER_FAILURES
from benchmarks.faults.matrix import CellResult

DARK_LAUNCH_SECONDS = 0.05
"""What a faulty copy may add to the caller's median: noise of a shared machine. The faults take 0.4 s and more."""
BREAKS = ("slow", "silent", "trickle", "refused", "hang", "500", "cut", "not-http")
"""Faults that must open the breaker; 429 and replies that are whole but senseless are answers."""
BROKEN_STREAMS = ("trickle", "cut")
"""The caller has the first pieces already: its stream breaks off, and no other answer can take its place."""
EXPECTED: dict[str, set[str]] = {
    "slow": {"backend_timeout"}, "silent": {"backend_timeout"}, "trickle": {"backend_timeout"},
    "refused": {"backend_connect"}, "hang": {"backend_connect"}, "429": {"rate_limit_error"},
    "500": {"server_error"}, "cut": {"backend_stream"}, "not-http": {"backend_stream"},
}  # fmt: skip
"""Error codes that callers see when the teacher is at fault and nobody else answers; `backend_breaker` besides."""


def broken_rules(results: Sequence[CellResult]) -> list[str]:
    """A sentence for each rule that a cell breaks; empty when all hold."""
    return [f"{r.cell.name}: {why}" for r in results for why in of_cell(r, results)]


def of_cell(found: CellResult, results: Sequence[CellResult]) -> Iterator[str]:
    """The rules that this cell breaks, held against the cells without a fault among the results."""
    yield from nothing_lost(found.outcomes, found.lost)
    yield from _caller(found)
    yield from _breaker(found)
    if found.cell.mode == "dark_launch" and found.cell.who != "teacher":
        yield from _dark_launch(found, results)
    whole = [o.kind for o in found.healed]
    if set(whole) - {"whole"}:
        yield f"healed, and callers still saw {whole}"


def nothing_lost(outcomes: Sequence[Outcome], lost: int) -> Iterator[str]:
    """Nothing is lost, nobody waits for ever, and every reply is one of the known kinds."""
    if lost:
        yield f"{lost} replies are not in the log"
    for kind in ("hung", "wrong"):
        number = sum(o.kind == kind for o in outcomes)
        if number:
            yield f"{number} callers saw: {kind}"


def _caller(found: CellResult) -> Iterator[str]:
    """A student's fault reaches nobody while the teacher can answer; a teacher's fault is told as it is."""
    cell = found.cell
    seen = {o.kind for o in found.outcomes}
    if cell.fault == "none" or (cell.mode in ("hybrid", "student") and cell.who == "teacher"):
        allowed = {"whole"}
    elif cell.who != "teacher":
        is_passed = cell.way == "pass" and cell.fault in BROKEN_STREAMS
        allowed = {"whole", "broken"} if is_passed else {"whole"}
    else:
        yield from _teacher_fault(found)
        return
    if seen - allowed:
        yield f"callers saw {sorted(seen - allowed)}"


def _teacher_fault(found: CellResult) -> Iterator[str]:
    cell = found.cell
    asked = [o for o in found.outcomes if o.served_by != "student"]
    if cell.fault in ("not-json", "gzip"):
        allowed, codes = {"as-came"}, set()
    else:
        is_broken = cell.is_stream and cell.fault in (*BROKEN_STREAMS, "silent")
        allowed = {"broken", "refused"} if is_broken else {"refused"}
        codes = EXPECTED[cell.fault] | {"backend_breaker"}
    if {o.kind for o in asked} - allowed:
        yield f"callers saw {sorted({o.kind for o in asked} - allowed)}, not only {sorted(allowed)}"
    wrong = {o.code for o in asked if o.kind == "refused"} - codes
    if wrong:
        yield f"callers saw error codes {sorted(wrong)}, not only {sorted(codes)}"


def _breaker(found: CellResult) -> Iterator[str]:
    cell = found.cell
    if cell.fault in BREAKS and found.failures >= BREAKER_FAILURES and found.breaker == "closed":
        yield f"{found.failures} failures did not open the breaker"
    if found.breaker_healed != "closed":
        yield f"the probe did not close the breaker: {found.breaker_healed}"


def _dark_launch(found: CellResult, results: Sequence[CellResult]) -> Iterator[str]:
    """A copy's fault is in the log, and the caller neither sees nor feels it."""
    if found.cell.fault != "none" and not found.failures:
        yield "no copy failed"
    cell = found.cell
    well = [
        r.p50_seconds for r in results
        if r.cell.fault == "none" and (r.cell.mode, r.cell.way) == ("dark_launch", cell.way)
    ]  # fmt: skip
    if well and found.p50_seconds - statistics.median(well) > DARK_LAUNCH_SECONDS:
        yield f"the caller waited {found.p50_seconds:.3f} s, {statistics.median(well):.3f} s without the fault"
