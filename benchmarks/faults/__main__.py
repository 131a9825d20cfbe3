"""`python -m benchmarks.faults`: the command line of the fault matrix."""

import asyncio
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.faults import events, matrix
from benchmarks.faults.cells import Cell, all_cells
from benchmarks.faults.confirm import confirmed
from benchmarks.faults.events import EventResult
from benchmarks.faults.matrix import CellResult
from benchmarks.faults.process import DidNotStart
from benchmarks.faults.report import cell_row, event_row, markdown, sums

err = Console(stderr=True)
app = typer.Typer(add_completion=False)


def _fail(message: str) -> typer.Exit:
    err.print(f"error: {message}", style="bold red", highlight=False, soft_wrap=True, markup=False)
    return typer.Exit(2)


def _chosen(only: str) -> tuple[list[Cell], list[str]]:
    """Cells whose name has all of one alternative's dotted words, and events of that name."""
    cells, names = all_cells(), list(events.EVENTS)
    if not only:
        return cells, names
    wanted = [word.strip() for word in only.split(",") if word.strip()]

    def has(cell: Cell, word: str) -> bool:
        return set(word.split(".")) <= set(cell.name.split("."))

    for word in wanted:
        if word not in names and not any(has(cell, word) for cell in cells):
            parts = sorted({part for cell in cells for part in cell.name.split(".")})
            raise _fail(f"--only {word!r}; allowed: {', '.join(names)}, or {', '.join(parts)}")
    kept = [cell for cell in cells if any(has(cell, word) for word in wanted)]
    return kept, [name for name in names if name in wanted]


@app.command()
def main(
    only: Annotated[
        str,
        typer.Option(
            help="Cells and events, by comma: words of a cell's name with dots, or an event's name."
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the sums and the events as Markdown.")
    ] = False,
) -> None:
    """Break teacher, student, disk, policy and router under a real router, and print what callers saw.

    Exit status 1 when a rule does not hold: something was lost, somebody waited for ever, a student's fault reached a
    caller, a breaker did not open or close. Cells that break a rule run once more with longer timeouts: what only a
    busy machine broke does not count.

    Example: python -m benchmarks.faults --only lorax.cut,teacher.slow.canary,"kill -9"
    """
    cells, names = _chosen(only)
    try:
        results, happened, broken = _run(cells, names)
    except DidNotStart as why:
        raise _fail(f"the router did not start: {why}") from why
    broken += [f"{found.name}: {why}" for found in happened for why in found.broken]
    rows, event_rows = [cell_row(r) for r in results], [event_row(e) for e in happened]
    if as_json:
        print(json.dumps({"cells": rows, "events": event_rows, "broken_rules": broken}, indent=1))
    elif as_markdown:
        print(markdown(sums(results)), markdown(event_rows), sep="\n\n")
    else:
        _show(rows)
        _show(event_rows)
    for rule in broken:
        err.print(
            f"broken: {rule}", style="bold red", highlight=False, soft_wrap=True, markup=False
        )
    raise typer.Exit(1 if broken else 0)


def _run(
    cells: list[Cell], names: list[str]
) -> tuple[list[CellResult], list[EventResult], list[str]]:
    with tempfile.TemporaryDirectory() as folder, Progress(console=err, transient=True) as bar:
        shown = bar.add_task("cells", total=len(cells) + len(names))

        def told() -> None:
            bar.advance(shown)

        results = asyncio.run(matrix.run(cells, Path(folder, "matrix"), told)) if cells else []
        broken = asyncio.run(confirmed(results, Path(folder, "again"), lambda: None))
        happened = []
        for number, name in enumerate(names):
            bar.update(shown, description=name)
            happened.append(asyncio.run(events.run(name, Path(folder, str(number)))))
            bar.advance(shown)
    return results, happened, broken


def _show(rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=None if Console().is_terminal else 220).print(table)


if __name__ == "__main__":
    app()
