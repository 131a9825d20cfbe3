"""Shipping and reading the traffic log: rows and megabytes a second, size, peak memory, beside naive pandas.

    python benchmarks/ship.py --folder DIR --records 1000000 --prepare    writes the segments, once
    python benchmarks/ship.py --folder DIR                                measures all, each in a process of its own

Every line names what was done, the seconds, records a second, megabytes of JSON lines a second, and peak memory.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

START = 1_795_514_400.0
ROUTES = ("tickets", "mail", "search", "summaries", "chat")
WORDS = [
    "the",
    "order",
    "has",
    "not",
    "arrived",
    "yet",
    "and",
    "nobody",
    "answers",
    "my",
    "refund",
    "invoice",
    "password",
    "account",
    "please",
    "when",
    "is",
    "delivery",
    "address",
    "wrong",
    "item",
    "broken",
    "screen",
    "charged",
    "twice",
    "cancel",
    "subscription",
    "upgrade",
    "plan",
    "thanks",
    "regards",
]
SEGMENT_BYTES = 64 << 20


def prepare(folder: Path, num: int, per_second: float) -> None:
    """Write `num` records as a router would: a chat request of some 100 words, one of five shadowed, 1 % feedback."""
    import msgspec

    from router.records import Answer, Comparison, Feedback, LateAnswer, Record, Usage, dump

    rng = random.Random(7)
    shutil.rmtree(folder / "traffic", ignore_errors=True)
    (folder / "traffic" / "feedback").mkdir(parents=True)

    def reply(role: Any, number: int, purpose: Any, at: float) -> Answer:
        text = rng.choice(("billing", "shipping", "account", "returns", "other"))
        body = {
            "id": f"chatcmpl-{number:x}", "object": "chat.completion", "created": int(at), "model": "big",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 180, "completion_tokens": 3, "total_tokens": 183},
        }  # fmt: skip
        return Answer(role, "up" if role == "teacher" else "students", "big", purpose=purpose, status=200, text=text,
                      finish_reason="stop", usage=Usage(180, 3), latency_seconds=rng.uniform(0.2, 2),
                      body=msgspec.Raw(json.dumps(body).encode()))  # fmt: skip

    lines: list[bytes] = []
    held = 0
    first = START
    late: list[tuple[float, bytes]] = []
    said: list[bytes] = []

    def flush() -> None:
        name = f"{datetime.fromtimestamp(first, UTC):%Y%m%dT%H%M%S.%f}-1.jsonl"
        (folder / "traffic" / name).write_bytes(b"".join(lines))

    for number in range(num):
        at = START + number / per_second
        text = " ".join(rng.choices(WORDS, k=rng.randint(60, 140)))
        request = {
            "model": "big", "temperature": 0,
            "messages": [{"role": "system", "content": "Sort this message into one class."}, {"role": "user", "content": text}],
        }  # fmt: skip
        identity, route = f"req-0123456789ab-{number:08x}", ROUTES[number % 5]
        new = [
            dump(Record(
                identity, at, route, "dark_launch", "3f9a1c2b", "teacher", "teacher", "mode dark_launch", 200,
                (reply("teacher", number, "reply", at),), model="big", request=msgspec.Raw(json.dumps(request).encode()),
                draw=rng.random(), shadow_share=0.2, user=f"user-{rng.randrange(5000)}", latency_seconds=rng.uniform(0.2, 2),
            ))
        ]  # fmt: skip
        if number % 5 == 3:
            line = LateAnswer(
                identity,
                at + 1.5,
                route,
                reply("student", number, "shadow", at),
                Comparison("exact", True, 1.0),
            )
            late.append((at + 1.5, dump(line)))
        if number % 100 == 0:
            said.append(dump(Feedback(identity, at + 60, route, 1.0)))
        while late and late[0][0] <= at:
            new.append(late.pop(0)[1])
        size = sum(map(len, new))
        if held + size > SEGMENT_BYTES:
            flush()
            lines, held, first = [], 0, at
        lines += new
        held += size
    lines += [line for _, line in late]
    flush()
    name = f"{datetime.fromtimestamp(START, UTC):%Y%m%dT%H%M%S.%f}-1.jsonl"
    (folder / "traffic" / "feedback" / name).write_bytes(b"".join(said))


def ship(folder: Path) -> int:
    """Our shipper, into an empty folder."""
    from router.log_store import LogStore
    from router.ship import Shipper

    shutil.rmtree(folder / "store", ignore_errors=True)
    shipper = Shipper(folder / "traffic", LogStore(folder / "store"), keep_seconds=1e12)
    sweep = shipper.sweep()
    assert sweep.ok, sweep.errors
    return shipper.totals.records


def pandas_naive(folder: Path) -> int:
    """What one would write first: a segment into a frame, the frame into a file. Neither routes, hours nor merging."""
    import pandas as pd

    shutil.rmtree(folder / "pandas", ignore_errors=True)
    (folder / "pandas").mkdir()
    rows = 0
    for path in sorted((folder / "traffic").glob("*.jsonl")):
        frame = pd.read_json(path, lines=True)
        for name in frame.select_dtypes(object).columns:
            frame[name] = frame[name].map(
                lambda v: json.dumps(v) if isinstance(v, dict | list) else v
            )
        frame.to_parquet(folder / "pandas" / f"{path.stem}.parquet", compression="zstd")
        rows += int((frame["kind"] == "record").sum())
    return rows


def _scan(folder: Path, place: str, **more: Any) -> int:
    from router.traffic import scan

    return _count(scan(folder / place, **more))


def _count(found: Iterable[Any]) -> int:
    return sum(1 for _ in found)


def middle(folder: Path) -> dict[str, Any]:
    """One route and ten minutes from the middle of the log."""
    from router.traffic import segments, started_at

    paths = segments(folder / "traffic")
    at = started_at(paths[len(paths) // 2]) or START
    return {"routes": ["mail"], "since": at, "until": at + 600}


TASKS: dict[str, tuple[str, Callable[[Path], int]]] = {
    "ship": ("graduate router ship", ship),
    "pandas": ("naive pandas read_json, to_parquet", pandas_naive),
    "scan-local": ("scan of segments", lambda f: _scan(f, "traffic")),
    "scan-shipped": ("scan of the shipped log", lambda f: _scan(f, "store")),
    "scan-shipped-bare": ("  without bodies", lambda f: _scan(f, "store", bodies=False)),
    "scan-local-slice": ("scan of segments, 1 route, 10 min", lambda f: _scan(f, "traffic", **middle(f))),
    "scan-shipped-slice": ("scan of the shipped log, the same", lambda f: _scan(f, "store", **middle(f))),
}  # fmt: skip


def peak_mib() -> float:
    """This process's highest resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM: this needs Linux")


def measure(folder: Path, task: str) -> dict[str, Any]:
    """One task, in this process."""
    began = time.perf_counter()
    cpu = time.process_time()
    rows = TASKS[task][1](folder)
    seconds = time.perf_counter() - began
    return {
        "task": task, "records": rows, "seconds": seconds, "cpu_seconds": time.process_time() - cpu,
        "peak_mib": peak_mib(),
    }  # fmt: skip


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Measure, or write the segments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where segments and outputs go")
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument(
        "--per-second", type=float, default=50.0, help="requests a second of the log's own time"
    )
    parser.add_argument(
        "--prepare", action="store_true", help="write the segments, measure nothing"
    )
    parser.add_argument("--only", help="these tasks, with commas: " + ", ".join(TASKS))
    parser.add_argument("--json", action="store_true", help="one line of JSON a task")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        print(json.dumps(measure(args.folder, args.task)))
        return
    if args.prepare or not (args.folder / "traffic").is_dir():
        prepare(args.folder, args.records, args.per_second)
        if args.prepare:
            return
    raw = size_of(args.folder / "traffic")
    if not args.json:
        print(f"{'':36}{'records':>10}{'seconds':>9}{'records/s':>11}{'MB/s':>8}{'peak MiB':>10}")
    for task in args.only.split(",") if args.only else TASKS:
        done = subprocess.run(
            [sys.executable, __file__, "--folder", str(args.folder), "--task", task],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
        if args.json:
            print(json.dumps(found), flush=True)
            continue
        speed = f"{raw / 1e6 / found['seconds']:.1f}" if "slice" not in task else "-"
        print(
            f"{TASKS[task][0]:36}{found['records']:>10,}{found['seconds']:>9.2f}"
            f"{found['records'] / found['seconds']:>11,.0f}{speed:>8}{found['peak_mib']:>10.0f}",
            flush=True,
        )
    for name in ("store", "pandas"):
        if (args.folder / name).is_dir():
            size = size_of(args.folder / name)
            print(
                f"{name}: {size / 1e6:.1f} MB of {raw / 1e6:.1f} MB JSON lines, {raw / size:.1f}x smaller"
            )


if __name__ == "__main__":
    main()
