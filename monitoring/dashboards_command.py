"""`graduate monitor dashboards`: the files that Grafana and Prometheus load."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

err = Console(stderr=True)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(dashboards)


def _fail(message: str) -> typer.Exit:
    err.print(f"error: {message}", style="bold red", highlight=False, soft_wrap=True, markup=False)
    return typer.Exit(2)


def dashboards(
    out: Annotated[
        Path, typer.Option("--out", help="Folder; gets dashboards/*.json and rules/*.yaml.")
    ],
    runbooks: Annotated[
        str | None,
        typer.Option(
            help="Where people read docs/dashboards.md; each alert then has its runbook_url."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the paths as JSON.")] = False,
) -> None:
    """Write the Grafana dashboards and the Prometheus rules.

    Example: graduate monitor dashboards --out observability
    """
    if runbooks is not None and not runbooks.startswith(("http://", "https://")):
        raise _fail(f"--runbooks = {runbooks!r}: allowed: an address that begins with https://")
    try:
        from monitoring import alerts
        from monitoring import dashboards as boards
    except ModuleNotFoundError as why:
        message = f"{why.name} is not installed; it comes with: pip install 'graduate[monitoring]'"
        raise _fail(message) from why
    try:
        paths = [*boards.write(out / "dashboards"), *alerts.write(out / "rules", runbooks)]
    except OSError as why:
        raise _fail(f"--out {out} cannot be written: {why.strerror}") from why
    if as_json:
        typer.echo(json.dumps([str(path) for path in paths]))
        return
    for path in paths:
        typer.echo(path)
