"""Traffic logs to ship: records of several routes over days, late answers, feedback, and strange ones."""

import datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from router.log_store import LogStore
from router.records import (
    NO_BODY,
    Answer,
    Comparison,
    Feedback,
    LateAnswer,
    Line,
    Record,
    ToolCall,
    Usage,
    dump,
)
from router.ship import Shipper
from router.traffic import FEEDBACK

START = 1_795_514_400.0  # 2026-11-24 10:00 UTC
DAY = 86400.0
ROUTES = ("mail", "chat", "a/b c%", "")


def record(number: int, at: float, route: str = "mail", **more: Any) -> Record:
    reply = Answer("teacher", "up", "big", status=200, text=f"reply {number} ü\u2028", latency_seconds=0.1 + number / 7,
                   usage=Usage(5, number), body=msgspec.Raw(b'{"id": "x",  "n": %d}' % number))  # fmt: skip
    kept = Record(
        f"r{number}", at, route, "dark_launch", "d", "teacher", "teacher", "mode teacher", 200, (reply,),
        request=msgspec.Raw(b'{"messages":[{"role":"user","content":"h\\u00e9 %d"}], "x": 1.0}' % number),
        draw=number / 13 % 1, metadata={"k": f"v{number}", "": "\U0001f600"} if number % 3 else {},
        user=None if number % 2 else "ada",
    )  # fmt: skip
    return msgspec.structs.replace(kept, **more)


def late(number: int, at: float, route: str = "mail", purpose: Any = "shadow") -> LateAnswer:
    calls = (ToolCall("find", '{"q": "ü"}', "c1"), ToolCall("stop")) if number % 2 else ()
    answer = Answer("student", "s", "mail", "mail/3", purpose, 200, f"late {number}", calls, confidence=0.5,
                    body=msgspec.Raw(b"[1, 2]"))  # fmt: skip
    fields = {"label": bool(number % 2)} if number % 4 else {}
    return LateAnswer(
        f"r{number}", at, route, answer, Comparison("json", number % 2 == 0, 0.25, fields)
    )


STRANGE: list[Line] = [
    record(900, START + 1, answers=(), request=NO_BODY),  # a route without text
    record(901, START + 2, request=msgspec.Raw(b'{"m":"[EMAIL] [PHONE]"}')),
    record(902, START + 3, request=msgspec.Raw(b'"' + b"x" * 1_000_000 + b'"')),
    record(903, START + 4, request=msgspec.Raw('{"m":"Grüße \\ud83d\\ude00 漢字"}'.encode())),
    record(904, START + 5, answers=(Answer("teacher", "up", "big", error="timeout"),), served_by="none", status=504),
    record(905, START + 6, feedback=(Feedback("r905", START + 7, "mail", 1.0),), comparison=Comparison("exact", None, comparable=False)),
    record(906, START + 7200, "other", segment="long", conversation="c", caller="team", stream=True, propensity=0.05),
    late(900, START + 9, purpose="audit"), late(901, START + 8), late(901, START + 8.5, purpose="noise"),
    late(77777, START + 9),
]  # fmt: skip


def stamp(at: float) -> str:
    return f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y%m%dT%H%M%S.%f}"


def write(folder: Path, lines: list[Line], size: int, pid: int = 7) -> None:
    """Closed segments of `size` lines each, and feedback in its own."""
    (folder / FEEDBACK).mkdir(parents=True, exist_ok=True)
    said = [line for line in lines if isinstance(line, Feedback)]
    rest = [line for line in lines if not isinstance(line, Feedback)]
    for place, found in ((folder, rest), (folder / FEEDBACK, said)):
        for i in range(0, len(found), size):
            part = found[i : i + size]
            name = f"{stamp(min(line.at for line in part))}-{pid}.jsonl"
            with (place / name).open("ab") as out:
                out.write(b"".join(map(dump, part)))


def traffic(num: int = 120) -> list[Line]:
    """Records of several routes over days, two of three shadowed at once or minutes later, some with feedback."""
    lines: list[tuple[float, Line]] = []
    for number in range(num):
        at = START + number * 97.0
        route = ROUTES[number % 4]
        lines.append((at + number % 5, record(number, at, route)))
        if number % 3:
            settled = at + (2.0 if number % 2 else 480.0)
            lines.append((settled, late(number, settled, route)))
        if number % 10 == 0:
            said = Feedback(f"r{number}", at + DAY, route if number % 20 else "", 0.5, "better ü")
            lines.append((at + DAY, said))
    lines += [(line.at, line) for line in STRANGE]
    return [line for _, line in sorted(lines, key=lambda pair: pair[0])]


def shipper(folder: Path, to: Path | LogStore, **more: Any) -> Shipper:
    store = to if isinstance(to, LogStore) else LogStore(to)
    return Shipper(folder, store, **{"keep_seconds": DAY, **more})


def shipped(folder: Path, to: Path) -> Shipper:
    made = shipper(folder, to)
    assert made.sweep().ok
    return made


class Killed(BaseException):
    """As a signal would end the process."""


class Dying(LogStore):
    """Dies before or after the n-th put."""

    def __init__(self, url: Path | str, puts: int, after: bool) -> None:
        super().__init__(url)
        self._left, self._after = puts, after

    def put(self, path: str, data: bytes | pa.Buffer) -> None:
        self._left -= 1
        if self._left < 0 and not self._after:
            raise Killed
        super().put(path, data)
        if self._left < 0:
            raise Killed
