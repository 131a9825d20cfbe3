"""`python -m benchmarks.router.memory`: whether the router's memory stays flat, run after run of one process.

Half of the runs send one head again and again, half another trace id and request id with every request: what a router
remembers of heads, callers or traces would grow with those. Loads of any strength will do, so the machine need not be
quiet.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.router.measure import Records, upstream, wait
from benchmarks.router.peers import peer
from benchmarks.router.phases import Phase, Target
from benchmarks.router.policies import MODES
from benchmarks.router.processes import LOAD_CORE, PROXY_CORE, free_port, process, usage

SAME = Phase("c32", "32 connections", 32, 1.0)
TRACED = Phase("c32t", "32 connections, every request with a trace id of its own", 32, 1.0, trace=True)  # fmt: skip


def measure(mode: str, runs: int, seconds: int, folder: Path) -> dict[str, Any]:
    """Resident MiB of one router at its start and after each run, of both kinds by turns, and the requests answered."""
    with upstream(folder) as (port, pid):
        mine = free_port()
        ours = peer(f"ours: {mode}", mine, f"http://127.0.0.1:{port}", folder, None)
        with process(PROXY_CORE, ours.command, folder / "proxy.log") as started:
            target = Target(mine, started.pid, port, pid)
            wait(target, started, folder / "proxy.log")
            assert ours.traffic_log is not None
            records = Records(ours.traffic_log)
            after, asked = [round(usage(started.pid).rss_mib, 1)], 0
            for number in range(runs):
                figures = target.run((SAME, TRACED)[number % 2], seconds)
                after.append(figures["rss_mib"])
                asked += int(figures["requests"])
                records.total()  # closed segments go, so that the disk does not fill
            return {"mode": mode, "rss_mib": after, "requests": asked}


def main(
    modes: Annotated[
        str, typer.Option(help="Modes of the router.")
    ] = "teacher,dark_launch,canary,hybrid",
    runs: Annotated[int, typer.Option(help="Runs of each mode, in one process.", min=2)] = 10,
    seconds: Annotated[int, typer.Option(help="Length of each run.", min=2)] = 10,
    out: Annotated[
        Path | None, typer.Option(help="Folder of memory.json; modes that it has are not run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the router's memory over many runs of one process.

    Example: python -m benchmarks.router.memory --modes teacher,dark_launch --runs 10 --seconds 10
    """
    wanted = [word.strip() for word in modes.split(",")]
    for word in wanted:
        if word not in MODES:
            raise typer.BadParameter(f"{word!r}; allowed: {', '.join(MODES)}", param_hint="--modes")
    os.sched_setaffinity(0, {LOAD_CORE})
    kept = out / "memory.json" if out else None
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept and kept.exists() else []
    err = Console(stderr=True)
    for mode in wanted:
        if any(row["mode"] == mode for row in rows):
            continue
        with err.status(mode), tempfile.TemporaryDirectory(prefix="bench-router-") as folder:
            rows.append(measure(mode, runs, seconds, Path(folder)))
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(rows, indent=1))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("mode", "requests", "RSS MiB at the start", "after each run")
    for row in rows:
        first, *rest = row["rss_mib"]
        table.add_row(
            row["mode"], f"{row['requests']:,}", f"{first:.0f}", ", ".join(f"{x:.1f}" for x in rest)
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
