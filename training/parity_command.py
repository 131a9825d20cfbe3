"""`graduate train parity`: a published student asked over its running server, beside training's own answers."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from router.home import Home
    from training.parity import Expected, Limits, Parity, Target


def parity(
    server_url: Annotated[
        str, typer.Option(help="The server, without /v1: http://127.0.0.1:8080.")
    ],
    adapter: Annotated[str, typer.Option(help="What the server calls it: tickets/1.")],
    run: Annotated[
        Path | None, typer.Option(help="Run that it was published from; default: the newest one.")
    ] = None,
    home: Annotated[Path, typer.Option(help="State folder.")] = Path(".graduate"),
    kind: Annotated[
        str, typer.Option(help="Dialect, as a policy's backend has it: lorax, openai.")
    ] = "lorax",
    adapter_source: Annotated[
        str | None, typer.Option(help="LoRAX's: hub, local, s3, pbase; default: the server's own.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Held-out rows that are asked.", min=1)] = 16,
    least: Annotated[
        float, typer.Option(help="Share of answers that must be equal.", min=0, max=1)
    ] = 0.9,
    least_prefix: Annotated[
        float,
        typer.Option(
            help="Mean share of training's answer that the server's must begin with; for long texts use --least 0 beside it.",
            min=0, max=1,
        ),
    ] = 0.9,
    timeout_seconds: Annotated[float, typer.Option(help="A request may take so long.", min=1)] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:  # fmt: skip
    """Compare a running server with training: prompt ids, greedy answers, and that the adapter is served at all.

    Status 2 when they differ. The result is RUN/evaluation/parity.json.

    Example: graduate train parity --server-url http://127.0.0.1:8080 --adapter tickets/1
    """
    from router.home import Home
    from training.commands import newest, operator_errors, progress_bar
    from training.errors import PublishRefused
    from training.form import address
    from training.parity import Limits, Target, dialect, through

    place = Home(home)
    with operator_errors():
        target = Target(
            address(server_url, "--server-url"),
            adapter,
            dialect(kind),
            adapter_source,
            timeout_seconds,
        )
        limits = Limits(least, least_prefix)
        folder = run or newest(place.runs, "*-*", "run")
        wanted, limit = _expected(folder, place, rows)
        with progress_bar(as_json) as tell:
            found = through(
                target, wanted, limit, lambda done: tell("server", done, len(wanted), None)
            )
        result = record(folder, target, limits, found)
        _show(found, limits, result, as_json)
        if result["wrong"]:
            raise PublishRefused(f"{adapter} at {server_url}: " + "; ".join(result["wrong"]))


def record(run: Path, target: "Target", limits: "Limits", found: "Parity") -> dict[str, Any]:
    """Write RUN/evaluation/parity.json, and return what is in it."""
    result = {
        "adapter": target.adapter, "server": target.dialect, "url": target.url, **asdict(found), "limits": asdict(limits),
        "wrong": found.wrong(limits),
    }  # fmt: skip
    file = run / "evaluation" / "parity.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2))
    return result


def _show(found: "Parity", limits: "Limits", result: dict[str, Any], as_json: bool) -> None:
    from training.commands import out

    if as_json:
        typer.echo(json.dumps(result))
        return
    for gate in found.gates(limits):
        out.print(
            f"{gate.name}: {gate.figure} · {gate.state}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )


def _expected(run: Path, place: "Home", rows: int) -> "tuple[list[Expected], int]":
    """Training's own answers, and how many tokens an answer may have.

    Raises:
        DataError: the run, its dataset or its adapter is not there.
    """
    from training import parity as core
    from training import publish
    from training.commands import open_base_model
    from training.dataset import Dataset
    from training.errors import DataError
    from training.evaluate_command import open_origin

    origin = open_origin(run)
    if not (run / "adapter" / "adapter_config.json").exists():
        raise DataError(f"{run}: no adapter in it; allowed: a run folder")
    dataset = Dataset.load(Path(origin["dataset"]))
    student, plain = publish.reloaded(run, open_base_model(origin["model"], place), dataset, rows)
    wanted = core.expected(publish.held_out(dataset, rows), student, plain)
    return wanted, student.max_new_tokens


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="parity")(parity)
