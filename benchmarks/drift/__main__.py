"""`python -m benchmarks.drift`: the command line of the drift benchmark."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.drift import texts, trials
from benchmarks.drift.report import markdown, summary
from benchmarks.drift.trials import Found, Trial
from monitoring.drift import ALARM_RATE

err = Console(stderr=True)
app = typer.Typer(add_completion=False)
SIZES = "200,500,1000,2000,5000"


def _fail(message: str) -> typer.Exit:
    err.print(f"error: {message}", style="bold red", highlight=False, soft_wrap=True, markup=False)
    return typer.Exit(2)


@app.command()
def main(
    sizes: Annotated[str, typer.Option(help="Rows of a window, by comma.")] = SIZES,
    windows: Annotated[int, typer.Option(min=0, help="Windows without drift, a size.")] = 200,
    runs: Annotated[int, typer.Option(min=0, help="Runs of each planted shift, a size.")] = 60,
    shifts: Annotated[str, typer.Option(help="Planted shifts, by comma.")] = ",".join(texts.SHIFTS),
    evidently: Annotated[
        int,
        typer.Option(
            min=0, help="Windows without drift of a size that evidently's defaults see too."
        ),
    ] = 100,
    reference: Annotated[int, typer.Option(min=60, help="Rows of the reference.")] = 2_000,
    jigsaw: Annotated[
        Path | None,
        typer.Option(
            help="A CSV with comment_text and toxic, or text and label, instead of the example's tickets."
        ),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="JSON lines kept here; what is there is not run again.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="Stop after so long; the next call goes on where --results ends.")
    ] = float("inf"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count alarms in windows without drift and windows until a planted shift is found; evidently's defaults beside it.

    Exit status 1 when more than 5 % of the windows without drift of a size alarm, or less than 95 % of the runs of a planted
    shift are found within 3 windows.

    Example: python -m benchmarks.drift --sizes 200,1000 --windows 50 --runs 20 --json
    """
    wanted = _wanted(sizes, windows, runs, shifts)
    try:
        pools = _pools(jigsaw)
    except (OSError, texts.SourceError) as why:
        raise _fail(f"--jigsaw: {why}") from why
    setting = {
        "reference": reference,
        "texts": jigsaw.name if jigsaw else "tickets",
        "alarm_rate": ALARM_RATE,
    }
    found = _kept(results, setting)
    left = [trial for trial in wanted if trial not in found]
    with results.open("a") if results else contextlib.nullcontext() as file:
        for trial, result in _run(left, pools, (reference, evidently), seconds):
            found[trial] = result
            if file is not None:
                row = {"setting": setting, "trial": asdict(trial), "found": asdict(result)}
                file.write(json.dumps(row) + "\n")
                file.flush()
    rows = summary({trial: found[trial] for trial in wanted if trial in found})
    missing = sum(trial not in found for trial in wanted)
    if as_json:
        print(json.dumps({"setting": setting, "rows": rows, "trials_missing": missing}, indent=1))
    else:
        print(markdown(r for r in rows if r["shift"] == "none"), end="\n\n")
        print(markdown(r for r in rows if r["shift"] != "none"))
        if missing:
            err.print(f"{missing} trials are missing: call again with the same --results")
    raise typer.Exit(0 if all(row["holds"] for row in rows) else 1)


def _wanted(sizes: str, windows: int, runs: int, shifts: str) -> list[Trial]:
    """All trials, spread so that each part of them says something of every size and shift."""
    found: list[tuple[int, Trial]] = []
    for text in sizes.split(","):
        if not text.strip().isdigit() or int(text) < 30:
            raise _fail(f"--sizes {text!r}: allowed: whole numbers from 30")
        size = int(text)
        found += [(n, Trial(size, None, n)) for n in range(windows)]
        for shift in filter(None, shifts.split(",")):
            if shift not in texts.SHIFTS:
                raise _fail(f"--shifts {shift!r}: allowed: {', '.join(texts.SHIFTS)}")
            found += [(n, Trial(size, shift, n)) for n in range(runs)]
    return [trial for _, trial in sorted(found, key=lambda item: item[0])]


def _pools(path: Path | None) -> tuple[texts.Texts, texts.Texts]:
    if path is None:
        return texts.tickets(), texts.tickets("shifted.jsonl")
    return texts.comments(path), texts.tickets()


def _kept(path: Path | None, setting: dict[str, object]) -> dict[Trial, Found]:
    """Results of earlier calls with the same setting; a line that was cut off is not one."""
    found: dict[Trial, Found] = {}
    for line in path.read_text().splitlines() if path and path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["setting"] != setting:
            raise _fail(f"--results {path}: holds runs of {row['setting']}, not of {setting}")
        found[Trial(**row["trial"])] = Found(**row["found"])
    return found


def _run(
    wanted: list[Trial],
    pools: tuple[texts.Texts, texts.Texts],
    setting: tuple[int, int],
    seconds: float,
) -> Iterator[tuple[Trial, Found]]:
    begun = time.monotonic()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err, transient=True) as bar:
        shown = bar.add_task("trials", total=len(wanted))
        for trial in wanted:
            if time.monotonic() - begun > seconds:
                return
            bar.update(shown, description=f"{trial.size} rows, {trial.shift or 'no shift'}")
            asked = trial.shift is None and trial.number < setting[1]
            yield trial, trials.run(trial, pools, setting[0], asked)
            bar.advance(shown)


if __name__ == "__main__":
    app()
