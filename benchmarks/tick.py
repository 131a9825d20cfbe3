"""What does a tick cost? Made records in a log of a temporary home, read by a real tick in a process of its own.

    python -m benchmarks.tick --records 100000 200000 --evidently --json

Prints for each size the seconds and the peak memory of that process, and beside it the ratio to the size before. With
`--evidently` the same log is then read by evidently in the naive way (`benchmarks.tick_naive`): in one frame, all rows described.

Measured on two cores of a shared machine, Python 3.11, evidently 0.7.23, each alone on the machine:

| records | the whole tick | evidently, five columns of drift and nothing else |
|---|---|---|
| 200,000 | 8.8 s, 386 MiB | 9.1 s, 457 MiB |
| 500,000 | 15.6 and 15.5 s, 398 MiB | 17.7 and 20.9 s, 660 MiB |
| 1,000,000 | 28.4 s, 417 MiB | |

The tick also merges late answers, compares, finds slices and topics, flags, gathers a canary's evidence and keeps the ledger.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import yaml

from router.records import Answer, Comparison, Record
from router.traffic import TrafficLog

WORDS = tuple(f"word{a}{b}" for a in "abcdefghij" for b in "abcdefghij")
POLICY = {
    "version": 1,
    "backends": {
        "t": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"},
        "s": {"kind": "lorax", "base_url": "http://127.0.0.1:9"},
    },
    "routes": {
        "mail": {
            "match": {"model": "mail"}, "teacher": {"backend": "t"}, "mode": "dark_launch",
            "student": {"backend": "s", "adapter": "mail", "version": 1},
            "answer": {"kind": "label", "labels": ["a", "b"]},
        }
    },
    "default": {"teacher": {"backend": "t"}},
}  # fmt: skip
SPAN_SECONDS = 6 * 86400.0


def record(number: int, rows: int, now: float) -> Record:
    """One pair; one in 25 disagrees."""
    words = " ".join(WORDS[(number * 7 + i * (1 + number % 11)) % len(WORDS)] for i in range(30))
    body = json.dumps({"model": "mail", "messages": [{"role": "user", "content": words}]})
    agrees = number % 25 != 0
    teacher = Answer("teacher", "t", "m", status=200, text="a", latency_seconds=0.9)
    student = Answer(
        "student", "s", "m", adapter="mail/1", purpose="shadow", status=200,
        text="a" if agrees else "b", confidence=0.8, latency_seconds=0.1,
    )  # fmt: skip
    return Record(
        id=f"r{number}", at=now - SPAN_SECONDS * (1 - number / rows), route="mail", mode="dark_launch",
        policy_digest="d", arm="teacher", served_by="teacher", reason="", status=200,
        answers=(teacher, student), request=msgspec.Raw(body.encode()), shadow_share=1.0,
        comparison=Comparison("label", agree=agrees),
    )  # fmt: skip


def make(home: Path, rows: int) -> None:
    """A home with a policy and a log of `rows` records."""
    home.mkdir()
    (home / "policy.yaml").write_text(yaml.safe_dump(POLICY))
    now = time.time()
    log = TrafficLog(home / "traffic")
    for number in range(rows):
        log.append(record(number, rows, now))
    log.close()


def measure(rows: int, evidently: bool = False) -> dict[str, float]:
    """Seconds and peak memory of `graduate monitor tick`, start of the process included; evidently's beside it."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        make(home, rows)
        command = [sys.executable, "-m", "benchmarks.tick", "--home", str(home)]
        result = _measured(command)
        if evidently:
            naive = _measured([sys.executable, "-m", "benchmarks.tick_naive", str(home)])
            result |= {f"evidently_{name}": value for name, value in naive.items()}
            result["evidently_cpu_ratio"] = round(naive["cpu_seconds"] / result["cpu_seconds"], 2)
    if result["records"] != rows:
        raise ValueError(f"the tick read {result['records']} of {rows} records")
    return result


def _measured(command: list[str]) -> dict[str, float]:
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return result


def one(home: Path) -> dict[str, float]:
    """A tick over `home` in this process, and what it took."""
    import datetime

    begun = time.perf_counter()
    from monitoring.settings import MonitorSettings
    from monitoring.store import open_store
    from monitoring.tick import run_tick
    from router.home import Home

    place = Home(home)
    store = open_store(place.database_url)
    settings = MonitorSettings(place.policy, place, place.database_url)
    (report,) = run_tick(settings, store, now=datetime.datetime.now(datetime.UTC))
    store.close()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "records": report.records,
        "seconds": round(time.perf_counter() - begun, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": round(usage.ru_maxrss / 1024, 1),
    }


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--records", type=int, nargs="+", default=[100_000, 200_000])
    parser.add_argument("--home", type=Path, help="only tick over this home, in this process")
    parser.add_argument("--evidently", action="store_true", help="evidently's way beside it")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    if min(chosen.records) < 1:
        parser.error("--records: allowed: from 1")
    if chosen.home is not None:
        sys.stdout.write(json.dumps(one(chosen.home)) + "\n")
        return
    found: list[dict[str, Any]] = []
    for rows in chosen.records:
        result: dict[str, Any] = measure(rows, chosen.evidently)
        if found:
            result["seconds_ratio"] = round(result["seconds"] / found[-1]["seconds"], 2)
            result["cpu_ratio"] = round(result["cpu_seconds"] / found[-1]["cpu_seconds"], 2)
        found.append(result)
        if not chosen.json:
            sys.stdout.write(" ".join(f"{k}={v}" for k, v in result.items()) + "\n")
            sys.stdout.flush()
    if chosen.json:
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
