"""`python -m benchmarks.router.workers`: what a second worker brings, and that nothing is lost by it.

Proxy, upstream and load share all cores, for a second worker needs one of its own. On a machine with two cores they
take from one another, so the throughput is a lower bound; what can be told there is that CPU time a request does not
grow, that both workers work, and that one log and one metrics page have every request.
"""

import json
import re
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.router.measure import Records, upstream, wait
from benchmarks.router.peers import peer
from benchmarks.router.phases import Phase, Target
from benchmarks.router.processes import family, free_port, process, usage

PHASES = (
    Phase("c32", "32 connections", 32, 1.0),
    Phase("c256d50", "256 connections, upstream takes 50 ms", 256, 1.0, delay_ms=50),
)
_COUNTED = re.compile(r"^graduate_router_requests_total\{[^}]*\} (\S+)$", re.MULTILINE)


def measure(workers: int, seconds: int, folder: Path) -> dict[str, Any]:
    """Figures of one router with so many workers."""
    cores = None  # all of them
    with upstream(folder, cores) as (port, pid):
        mine, pages = free_port(), free_port()
        ours = peer("ours: teacher", mine, f"http://127.0.0.1:{port}", folder, None)
        command = list(ours.command)
        command[command.index("--admin-port") + 1] = str(pages)
        command += ["--workers", str(workers)]
        with process(cores, command, folder / "proxy.log") as started:
            target = Target(mine, started.pid, port, pid, load_core=cores)
            wait(target, started, folder / "proxy.log")
            assert ours.traffic_log is not None
            records = Records(ours.traffic_log)
            before, cpu = records.total(), _cpu_by_process(started.pid)
            found: dict[str, Any] = {"workers": workers}
            asked = 0.0
            for phase in PHASES:
                figures = target.run(phase, seconds)
                asked += figures["requests"]
                found[phase.name] = {
                    key: figures[key] for key in ("requests_per_second", "p50_ms", "p99_ms", "cpu_us", "errors")
                }  # fmt: skip
            spent = [now - cpu.get(pid, 0.0) for pid, now in _cpu_by_process(started.pid).items()]
            found["cpu_seconds_by_process"] = sorted((round(s, 1) for s in spent if s > 0.2), reverse=True)  # fmt: skip
            time.sleep(1.0)  # workers give their counts to the parent every half second
            page = f"http://127.0.0.1:{pages}/metrics"
            with urllib.request.urlopen(page, timeout=10) as answer:
                counted = sum(map(float, _COUNTED.findall(answer.read().decode())))
            found["records_missing"] = int(max(0, asked - (records.total() - before)))
            found["metrics_missing"] = int(max(0, asked - counted))
            return found


def _cpu_by_process(pid: int) -> dict[int, float]:
    return {one: usage(one, alone=True).cpu_seconds for one in family(pid)}


def main(
    workers: Annotated[str, typer.Option(help="Numbers of workers, in this order.")] = "1,2",
    seconds: Annotated[int, typer.Option(help="Length of each phase.", min=2)] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the router with several workers, everything on all cores.

    Example: python -m benchmarks.router.workers --workers 1,2 --seconds 4
    """
    try:
        numbers = [int(word) for word in workers.split(",")]
    except ValueError as why:
        raise typer.BadParameter(f"{workers!r}; allowed: numbers with commas between", param_hint="--workers") from why  # fmt: skip
    err, rows = Console(stderr=True), []
    for number in numbers:
        with (
            err.status(f"{number} workers"),
            tempfile.TemporaryDirectory(prefix="bench-router-") as kept,
        ):
            rows.append(measure(number, seconds, Path(kept)))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    heads = ("workers", "req/s, 32 conn.", "CPU µs a request", "req/s, 256 conn., 50 ms", "CPU s by process", "missing: records / metrics", "errors")  # fmt: skip
    table = Table(*heads)
    for row in rows:
        errors = sum(row[phase.name]["errors"] for phase in PHASES)
        table.add_row(
            str(row["workers"]), f"{row['c32']['requests_per_second']:,.0f}", f"{row['c32']['cpu_us']:.0f}",
            f"{row['c256d50']['requests_per_second']:,.0f}", ", ".join(map(str, row["cpu_seconds_by_process"])),
            f"{row['records_missing']} / {row['metrics_missing']}", f"{errors:.0f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
