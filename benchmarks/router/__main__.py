"""`python -m benchmarks.router`: the command line of the benchmark."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.router.measure import DidNotStart, measure, run_seconds
from benchmarks.router.peers import PEERS, NotInstalled, names, require
from benchmarks.router.policies import MODES
from benchmarks.router.processes import LOAD_CORE, PROXY_CORE
from benchmarks.router.report import COLUMNS, goals, markdown, table
from benchmarks.router.results import Results, WrongSettings

START_SECONDS = 12.0
"""What starting and warming up a proxy may take, for `--budget`."""
err = Console(stderr=True)
app = typer.Typer(add_completion=False)


def _listed(given: str, allowed: tuple[str, ...], option: str) -> list[str]:
    found = [word.strip() for word in given.split(",") if word.strip()]
    for word in found:
        if word not in allowed:
            raise typer.BadParameter(f"{word!r}; allowed: {', '.join(allowed)}", param_hint=option)
    return found


def _fail(message: str) -> typer.Exit:
    err.print(f"error: {message}", style="bold red", highlight=False, soft_wrap=True, markup=False)
    return typer.Exit(2)


@app.command()
def main(
    peers: Annotated[str, typer.Option(help=f"Whom to measure: {', '.join(PEERS)}.")] = ",".join(
        PEERS
    ),
    modes: Annotated[str, typer.Option(help="Modes of ours.")] = ",".join(MODES),
    seconds: Annotated[int, typer.Option(help="Length of the longest phase.", min=1)] = 5,
    runs: Annotated[int, typer.Option(help="Runs of each; medians are printed.", min=1)] = 3,
    out: Annotated[
        Path, typer.Option(help="Folder of results.json; a cut run goes on from it.")
    ] = Path("build/benchmarks/router"),
    litellm: Annotated[
        Path | None, typer.Option(help="The litellm program in a virtual environment of its own.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Begin nothing that would not end within so many seconds.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as Markdown.")
    ] = False,
) -> None:
    """Measure the router beside other proxies, one core for the proxy and one for upstream and load.

    Example: python -m benchmarks.router --peers ours,bare-asgi,nginx --seconds 5 --runs 3
    """  # fmt: skip
    wanted = _listed(peers, PEERS, "--peers")
    rows = names(wanted, _listed(modes, MODES, "--modes"))
    if not {PROXY_CORE, LOAD_CORE} <= os.sched_getaffinity(0):
        raise _fail("CPU cores 0 and 1 are needed: one for the proxy, one for upstream and load")
    os.sched_setaffinity(0, {LOAD_CORE})  # this process must not take time from the proxy
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        require(wanted, litellm)
        results = Results.open(out / "results.json", seconds)
        left = _measure_all(results, rows, runs, litellm, budget)
    except (NotInstalled, WrongSettings, DidNotStart) as why:
        raise _fail(str(why)) from why
    except KeyboardInterrupt:
        err.print("cut; what was measured is kept, the same command goes on")
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps(_as_data(results, rows, left), indent=1))
    elif as_markdown:
        print(markdown(results, rows))
    else:
        _show(results, rows)
    if left:
        err.print(f"{left} runs are left; the same command goes on", highlight=False)


def _measure_all(
    results: Results, rows: list[str], runs: int, litellm: Path | None, budget: float | None
) -> int:
    """Make the missing runs, row by row, each row's in one process; how many are left when the budget ends."""
    began = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        total = sum(results.missing(name, runs) for name in rows)
        shown = bar.add_task("", total=total)
        for name in rows:
            number = results.missing(name, runs)
            if budget is not None:
                left = budget - (time.monotonic() - began) - START_SECONDS
                if number * run_seconds(results.seconds) > left:
                    continue
            if number:
                measure(
                    results, name, number, litellm,
                    lambda what, name=name: bar.update(shown, description=f"{name}: {what}"),  # type: ignore[misc]
                )  # fmt: skip
                bar.advance(shown, number)
    return sum(results.missing(name, runs) for name in rows)


def _as_data(results: Results, rows: list[str], left: int) -> dict[str, Any]:
    heads = [column.head for column in COLUMNS]
    return {
        "machine": results.machine,
        "rows": [dict(zip(heads, cells, strict=True)) for cells in table(results, rows)],
        "goals": [
            {"goal": goal.text, "measured": goal.measured, "met": goal.is_met}
            for goal in goals(results)
        ],
        "runs_left": left,
        "file": str(results.path),
    }


def _show(results: Results, rows: list[str]) -> None:
    console = Console(width=None if Console().is_terminal else 260)
    machine = results.machine
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, {machine['began']}",
        highlight=False,
    )
    shown = Table(*(column.head for column in COLUMNS))
    for cells in table(results, rows):
        shown.add_row(*cells)
    console.print(shown)
    words = {True: "met", False: "missed", None: "not measured"}
    for goal in goals(results):
        console.print(
            f"{words[goal.is_met]:>12}  {goal.text}: {goal.measured or '–'}", highlight=False
        )


if __name__ == "__main__":
    app()
