"""The cells of the matrix, and the policy that has a route and backends of its own for each. Pure.

Backends are not shared between cells: a breaker that one cell opens must not answer for another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import yaml

from benchmarks.faults.upstream import FAULTS, Fault
from router.policy import Mode

Who = Literal["teacher", "lorax", "openai"]
"""Who is at fault: the teacher, or a student of that kind of backend."""
WHO: tuple[Who, ...] = get_args(Who)
MODES: tuple[Mode, ...] = get_args(Mode)
Way = Literal["whole", "stream", "pass"]
"""Not streamed; streamed; streamed with the student's text passed on as it is written (`guard.stream: pass`)."""
CONNECT_SECONDS, FIRST_SECONDS, TOTAL_SECONDS = 0.4, 0.5, 1.0
BREAKER_FAILURES, OPEN_FOR_SECONDS = 5, 4.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault of one backend under one mode."""

    who: Who
    fault: Fault
    mode: Mode
    way: Way

    @property
    def name(self) -> str:
        """Its route, and the model that chooses it."""
        return f"{self.who}.{self.fault}.{self.mode}.{self.way}"

    @property
    def is_stream(self) -> bool:
        """Whether the caller asks for a stream."""
        return self.way != "whole"

    @property
    def backend(self) -> str:
        """The backend at fault."""
        return f"{'teacher' if self.who == 'teacher' else 'student'}:{self.name}"


def all_cells() -> list[Cell]:
    """The whole matrix; cells that have no fault are what the others are held against."""
    found = []
    for who in WHO:
        for mode in MODES:
            if who != "teacher" and mode == "teacher":
                continue  # no student is asked
            ways: tuple[Way, ...] = ("whole", "stream")
            if who == "lorax" and mode in ("canary", "student"):
                ways = (*ways, "pass")
            found += [Cell(who, fault, mode, way) for fault in FAULTS for way in ways]
    return found


def policy(
    cells: list[Cell],
    ports: Mapping[Fault, int],
    open_for_seconds: float = OPEN_FOR_SECONDS,
    patience: float = 1.0,
) -> str:
    """A policy with a route for each cell.

    Args:
        open_for_seconds: until an open breaker lets a probe through.
        patience: times by which every timeout is longer.
        ports: where each fault answers; `none` is the upstream that is well.
    """

    def backend(kind: str, port: int) -> dict[str, Any]:
        return _backend(kind, port, open_for_seconds, patience)

    backends: dict[str, Any] = {"well": backend("openai", ports["none"])}
    routes: dict[str, Any] = {}
    for cell in cells:
        is_teacher = cell.who == "teacher"
        kind = "lorax" if is_teacher else cell.who
        at = {"teacher": ports["none"], "student": ports["none"]}
        at["teacher" if is_teacher else "student"] = ports[cell.fault]
        teacher, student = f"teacher:{cell.name}", f"student:{cell.name}"
        backends[teacher] = backend("openai", at["teacher"])
        backends[student] = backend(kind, at["student"])
        routes[cell.name] = _route(cell, teacher, student)
    default = {"teacher": {"backend": "well"}}
    return yaml.safe_dump(
        {"version": 1, "backends": backends, "routes": routes, "default": default}
    )


def _backend(kind: str, port: int, open_for_seconds: float, patience: float) -> dict[str, Any]:
    return {
        "kind": kind,
        "base_url": f"http://127.0.0.1:{port}" + ("" if kind == "lorax" else "/v1"),
        "timeout": {
            "connect": f"{patience * CONNECT_SECONDS}s",
            "first_token": f"{patience * FIRST_SECONDS}s",
            "total": f"{patience * TOTAL_SECONDS}s",
        },
        "retries": {"attempts": 2, "backoff": "20ms"},
        "breaker": {"failures": BREAKER_FAILURES, "open_for": f"{open_for_seconds}s"},
    }


def _route(cell: Cell, teacher: str, student: str) -> dict[str, Any]:
    route: dict[str, Any] = {
        "match": {"model": cell.name},
        "mode": cell.mode,
        "teacher": {"backend": teacher},
        "student": {"backend": student, "adapter": "mail", "version": 1},
        "canary": {"steps": [0.5], "audit": 0.0},
    }
    if cell.who != "openai":  # LoRAX's native dialect carries a template's text, OpenAI's the chat
        route["student"]["prompt"] = "{input}"
    if cell.way == "pass":
        route["guard"] = {"stream": "pass"}
    return route
