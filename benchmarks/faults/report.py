"""Results as rows: for the terminal, for JSON and for the README. Pure."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.faults.callers import Outcome
from benchmarks.faults.events import EventResult
from benchmarks.faults.matrix import CellResult

HEADS = (
    "who", "fault", "mode", "way", "sent", "whole", "fell back", "refused", "broken", "as came", "lost", "hung",
    "p50 s", "max s", "breaker", "callers saw",
)  # fmt: skip
EVENT_HEADS = (
    "event", "sent", "whole", "fell back", "refused", "broken", "away", "lost", "hung", "dropped", "max s", "besides",
)  # fmt: skip


def saw(outcomes: Sequence[Outcome]) -> str:
    """What callers saw, the most frequent first."""
    words = Counter(
        f"{o.status} {o.code}" if o.kind == "refused" else f"{o.kind} ({o.served_by})"
        for o in outcomes
    )
    return ", ".join(f"{number} {word}" for word, number in words.most_common())


def cell_row(found: CellResult) -> dict[str, Any]:
    """One cell."""
    cell = found.cell
    values = (
        cell.who, cell.fault, cell.mode, cell.way, len(found.outcomes), found.count("whole"),
        found.fell_back, found.count("refused"), found.count("broken"), found.count("as-came"),
        found.lost, found.count("hung"), round(found.p50_seconds, 3), round(found.max_seconds, 2),
        f"{found.breaker} → {found.breaker_healed}", saw(found.outcomes),
    )  # fmt: skip
    return dict(zip(HEADS, values, strict=True))


def event_row(found: EventResult) -> dict[str, Any]:
    """One event."""
    slowest = max((o.seconds for o in found.outcomes), default=0.0)
    values = (
        found.name, len(found.outcomes), found.count("whole"), found.fell_back, found.count("refused"),
        found.count("broken"), found.count("away"), found.lost, found.count("hung"), found.dropped,
        round(slowest, 2), "; ".join(found.notes),
    )  # fmt: skip
    return dict(zip(EVENT_HEADS, values, strict=True))


def sums(results: Sequence[CellResult]) -> list[dict[str, Any]]:
    """The matrix by who is at fault, fault and way of the reply, modes added up: what fits on a page."""
    found: dict[tuple[str, str], list[CellResult]] = {}
    for one in results:
        found.setdefault((one.cell.who, one.cell.fault), []).append(one)
    rows = []
    for (who, fault), cells in found.items():
        outcomes = [o for one in cells for o in one.outcomes]
        opened = sum(one.breaker != "closed" for one in cells)
        closed = sum(one.breaker_healed == "closed" for one in cells)
        kinds = Counter(o.kind for o in outcomes)
        rows.append(
            {
                "who": who, "fault": fault, "cells": len(cells), "sent": len(outcomes),
                "whole": kinds["whole"], "fell back": sum(one.fell_back for one in cells),
                "refused": kinds["refused"], "broken": kinds["broken"], "as came": kinds["as-came"],
                "lost": sum(one.lost for one in cells), "hung": kinds["hung"],
                "max s": round(max(o.seconds for o in outcomes), 2), "breakers opened": opened,
                "closed after": f"{closed}/{len(cells)}",
            }
        )  # fmt: skip
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table for a README."""
    if not rows:
        return ""
    heads = list(rows[0])
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join(str(row[head]) for head in heads)} |" for row in rows]
    return "\n".join(lines)
