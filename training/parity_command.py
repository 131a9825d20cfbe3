"""`graduate train parity`: a published student asked over its running server, beside training's own answers."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from router.home import Home
    from training.parity import Dialect, Expected, Parity

DIALECTS = ("lorax", "openai")


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
        str, typer.Option(help=f"Dialect, as a policy's backend has it: {', '.join(DIALECTS)}.")
    ] = "lorax",
    rows: Annotated[int, typer.Option(help="Held-out rows that are asked.", min=1)] = 16,
    least: Annotated[
        float, typer.Option(help="Share of answers that must be equal.", min=0, max=1)
    ] = 0.9,
    timeout_seconds: Annotated[float, typer.Option(help="A request may take so long.", min=1)] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare a running server with training: prompt ids, greedy answers, and that the adapter is served at all.

    Status 2 when they differ. The result is RUN/evaluation/parity.json.

    Example: graduate train parity --server-url http://127.0.0.1:8080 --adapter tickets/1
    """
    from router.home import Home
    from training.commands import newest, operator_errors, out
    from training.errors import ConfigError, PublishRefused

    place = Home(home)
    with operator_errors():
        if kind not in DIALECTS:
            raise ConfigError(f"--kind {kind!r}: allowed: {', '.join(DIALECTS)}")
        folder = run or newest(place.runs, "*-*", "run")
        wanted, limit = _expected(folder, place, rows)
        found = _asked(
            wanted, server_url, cast("Dialect", kind), adapter, limit, timeout_seconds, as_json
        )
        wrong = found.wrong(least)
        result = {"adapter": adapter, "server": kind, **asdict(found), "wrong": wrong}
        file = folder / "evaluation" / "parity.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=2))
        if as_json:
            typer.echo(json.dumps(result))
        else:
            told = (
                f"{found.prompts_equal} of {found.prompts_told}"
                if found.prompts_told
                else "not told"
            )
            out.print(
                f"prompt ids equal: {told} · answers equal: {found.answers_equal} of {found.rows} · the base model's "
                f"answer: {found.same_as_base} of {found.base_differs}",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
        if wrong:
            raise PublishRefused(f"{adapter} at {server_url}: " + "; ".join(wrong))


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


def _asked(
    wanted: "list[Expected]", url: str, kind: "Dialect", adapter: str, limit: int, timeout: float, quiet: bool
) -> "Parity":  # fmt: skip
    import httpx

    from training import parity as core
    from training.commands import progress_bar

    served: list[Any] = []
    with (
        httpx.Client(base_url=url.rstrip("/") + "/", timeout=timeout, trust_env=False) as client,
        progress_bar(quiet) as tell,
    ):
        for row in wanted:
            served.append(core.ask(client, kind, adapter, row.prompt, limit))
            tell("server", len(served), len(wanted), None)
    return core.compare(wanted, served)


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="parity")(parity)
