"""How long is a stream of windows followed before drift over time is told, without drift and with it?

    python -m benchmarks.drift.streams --sizes 200 --streams 30 --windows 60 --json

Each stream has a reference of its own, which all its windows meet, as in production (`monitoring.lasting`). Beside it, in the
same streams, the first window that alarms by itself.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.drift import texts
from monitoring.drift import measure
from monitoring.lasting import MEAN_WINDOWS, added


@dataclass(frozen=True, slots=True)
class Stream:
    """What is followed. `shift` None plants nothing."""

    size: int
    shift: str | None
    number: int


@dataclass(frozen=True, slots=True)
class Seen:
    """The first window, from 1, at which either told drift; 0 when it never did."""

    windows: int
    alarm: int
    lasting: int
    alarms: int
    """Windows that alarmed by themselves."""


def follow(stream: Stream, windows: int, reference_rows: int) -> Seen:
    """Windows against one reference, until drift over time is told."""
    pools = (texts.tickets(), texts.tickets("shifted.jsonl"))
    draws = random.Random(f"{stream.size}/{stream.shift}/{stream.number}/stream")
    reference = texts.window(pools[0], reference_rows, draws)
    evidence, alarm, alarms = 0.0, 0, 0
    for number in range(1, windows + 1):
        current = texts.window(pools[0], stream.size, draws)
        if stream.shift is not None:
            current = texts.planted(current, stream.shift, draws, pools)
        found = measure(reference, current, seed=1000 * stream.number + number)
        assert found.p_value is not None
        evidence = added(evidence, found.p_value)
        alarms += found.drifted
        alarm = alarm or (number if found.drifted else 0)
        if evidence >= MEAN_WINDOWS:
            return Seen(number, alarm, number, alarms)
    return Seen(windows, alarm, 0, alarms)


def summary(results: Sequence[Seen]) -> dict[str, float | int | list[int]]:
    """A row of the table."""
    told = [seen.lasting for seen in results if seen.lasting]
    return {
        "streams": len(results),
        "windows": sum(seen.windows for seen in results),
        "windows_alarmed": sum(seen.alarms for seen in results),
        "streams_told": len(told),
        "told_after": [int(v) for v in np.quantile(told, [0.5, 0.95, 1.0])] if told else [],
        "told_within_3": sum(0 < seen.lasting <= 3 for seen in results),
        "alarmed_within_3": sum(0 < seen.alarm <= 3 for seen in results),
    }


def _kept(path: Path | None) -> dict[Stream, Seen]:
    if path is None or not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {Stream(**row["stream"]): Seen(**row["seen"]) for row in rows}


def _wanted(sizes: Sequence[int], shifts: Sequence[str], streams: int) -> Iterator[Stream]:
    for number in range(streams):
        for size in sizes:
            for shift in shifts:
                yield Stream(size, None if shift == "none" else shift, number)


def main() -> int:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.drift.streams", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--sizes", type=int, nargs="+", default=[200])
    parser.add_argument(
        "--shifts", nargs="+", default=["none", "cut"], choices=["none", *texts.SHIFTS]
    )
    parser.add_argument("--streams", type=int, default=30, help="of each size and shift")
    parser.add_argument("--windows", type=int, default=60, help="of a stream at most")
    parser.add_argument("--reference", type=int, default=2_000, help="rows of the reference")
    parser.add_argument("--results", type=Path, help="JSON lines; what is there is not run again")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = _kept(given.results)
    wanted = list(_wanted(given.sizes, given.shifts, given.streams))
    for number, stream in enumerate(wanted):
        if stream in found:
            continue
        found[stream] = follow(stream, given.windows, given.reference)
        if given.results:
            with given.results.open("a") as file:
                line = {"stream": asdict(stream), "seen": asdict(found[stream])}
                file.write(json.dumps(line) + "\n")
        sys.stderr.write(f"\r{number + 1} of {len(wanted)} streams")
    rows = [
        {"rows": size, "shift": shift}
        | summary([found[s] for s in wanted if (s.size, s.shift or "none") == (size, shift)])
        for size in given.sizes
        for shift in given.shifts
    ]
    for row in [json.dumps(rows)] if given.json else map(str, rows):
        sys.stdout.write(row + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
