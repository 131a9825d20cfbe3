"""`graduate train fit` beside TRL's SFTTrainer on the same rows, one way after another, in turns; prints the table.

python -m benchmarks.training.run --jigsaw FOLDER --budget 140     status 3: the same call goes on
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.training.report import curves, table
from benchmarks.training.way import WAYS

UNFINISHED = 3
TRL_EPOCHS = 3
"""Passes that SFTTrainer plans as it comes: its learning rate falls to 0 over them, however far it is followed."""
LEAST_SECONDS = 40.0
"""A turn is not begun with less: loading takes ten of them."""


def main() -> int:
    """Measure until the budget is spent; 0 when nothing is left to do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--jigsaw", type=Path, help="Folder of the playbook's files; default: the tickets."
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, default=Path(".benchmarks/training"))
    parser.add_argument("--rows", type=int, default=256, help="Training rows.")
    parser.add_argument("--held", type=int, default=64, help="Validation rows.")
    parser.add_argument(
        "--epochs", type=int, default=4, help="Of `fit`; the others see at most --most rows."
    )
    parser.add_argument(
        "--check", type=int, default=16, help="Rows between two validations, a multiple of 8."
    )
    parser.add_argument(
        "--most", type=int, default=256, help="Rows that trl-tuned and fit-trl see."
    )
    parser.add_argument(
        "--most-plain", type=int, default=48, help="Rows that trl and trl-rate see: they are slow."
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--budget", type=float, default=1e9, help="Seconds after which this call ends."
    )
    parser.add_argument("--ways", default=",".join(WAYS))
    args = parser.parse_args()
    began = time.monotonic()
    for way in args.ways.split(","):
        while not is_done(state_of(args.out / way), most_of(way, args)):
            left = args.budget - (time.monotonic() - began)
            if left < LEAST_SECONDS:
                return UNFINISHED
            turn(way, args, left)
    results = {way: state_of(args.out / way) for way in WAYS if state_of(args.out / way)}
    machine = {
        "processor": processor(),
        "threads": args.threads,
        "rows": args.rows,
        "held": args.held,
    }
    (args.out / "results.json").write_text(
        json.dumps({"machine": machine, "ways": results}, indent=1)
    )
    sys.stdout.write(table(results) + "\n" + curves(results) + "\n")
    return 0


def state_of(folder: Path) -> dict[str, Any]:
    """What a way has measured so far."""
    file = folder / "state.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def most_of(way: str, args: Any) -> int | None:
    """Rows after which SFTTrainer is no longer followed; None for ways that end by themselves."""
    return {"trl": args.most_plain, "trl-rate": args.most_plain, "trl-tuned": args.most}.get(way)


def is_done(state: dict[str, Any], most: int | None) -> bool:
    """Whether a way has been followed as far as it should be; a later call may ask for more rows."""
    return bool(state.get("done")) and (most is None or state["rows_seen"] >= most)


def turn(way: str, args: Any, left: float) -> None:
    """One process, which saves itself before the budget ends."""
    epochs = {"fit": args.epochs, "trl": TRL_EPOCHS, "trl-rate": TRL_EPOCHS}.get(
        way, -(-args.most // args.rows)
    )
    most = {name: rows for name in WAYS if (rows := most_of(name, args)) is not None}
    command = [
        sys.executable, "-m", "benchmarks.training.way", way, str(args.out / way), "--model", args.model,
        "--rows", str(args.rows), "--held", str(args.held), "--epochs", str(epochs), "--threads", str(args.threads),
        "--check", str(args.check), "--seconds", str(left - 15), "--most", json.dumps(most),
    ]  # fmt: skip
    if args.jigsaw:
        command += ["--jigsaw", str(args.jigsaw)]
    subprocess.run(command, check=True, timeout=left + 600)


def processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
