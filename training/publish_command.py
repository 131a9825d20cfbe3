"""`graduate train publish`: a run's gates, the conclusion, and its place in the registry."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from router.home import Home
    from serving.registry import AdapterRef
    from training.gates import Conclusion
    from training.publish_run import Asked, Server
    from training.servers import Server as Kind

RunOption = Annotated[Path | None, typer.Option(help="Run folder; default: the newest one.")]
HomeOption = Annotated[Path, typer.Option(help="State folder; the registry is HOME/adapters.")]


def publish(
    run: RunOption = None,
    home: HomeOption = Path(".graduate"),
    name: Annotated[
        str | None, typer.Option(help="Name in the registry; default: the route's.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="Policy whose route will ask the student; default HOME/policy.yaml."),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="Kind of server that serves it: lorax, vllm, graduate; default: any may."
        ),
    ] = None,
    server_url: Annotated[
        str | None,
        typer.Option(
            help="A running server, without /v1: it must answer as training does before anything is published."
        ),
    ] = None,
    served_as: Annotated[
        str | None,
        typer.Option(
            help="What that server calls the run's adapter; default: a candidate in the registry that it reads."
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="Dialect of that server, as in a policy: lorax, openai.")
    ] = "lorax",
    adapter_source: Annotated[
        str | None, typer.Option(help="LoRAX's: hub, local, s3, pbase; default: the server's own.")
    ] = None,
    rows: Annotated[
        int, typer.Option(help="Held-out rows of the reload check and of parity.", min=1)
    ] = 16,
    least: Annotated[
        float,
        typer.Option(
            help="Share of that server's answers that must equal training's.", min=0, max=1
        ),
    ] = 0.9,
    least_prefix: Annotated[
        float,
        typer.Option(help="Mean share of an answer that must agree from its beginning.", min=0, max=1),
    ] = 0.9,
    max_open_flags: Annotated[
        int, typer.Option(help="Flags of the route that may wait for a review.", min=0)
    ] = 200,
    min_reviewed: Annotated[
        int, typer.Option(help="Records of the route that a person must have judged.", min=0)
    ] = 0,
    min_agreement: Annotated[
        float,
        typer.Option(
            help="Share of reviewed held-out rows (of 20 or more) on which the student is right.", min=0, max=1
        ),
    ] = 0.5,
    database: Annotated[
        str | None, typer.Option(help="URL of the reviews; default HOME/graduate.db.")
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="Model whose answers rows without a teacher's id hold; again for more."),
    ] = None,
    terms: Annotated[
        Path | None, typer.Option(help="YAML: your own entries of terms of service, before ours.")
    ] = None,
    accept_terms: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="NAME REASON",
            help="NAME has read the restricted terms and says why this use is within them; recorded.",
        ),
    ] = None,
    force: Annotated[
        str | None,
        typer.Option(
            help="Publish although the gates say `do not graduate`; the reason is recorded."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:  # fmt: skip
    """Ask every gate about a run, say what they come to, and put it into the registry as its adapter's next version.

    Status 2 when a gate refuses; RUN/evaluation/gates.json says which. Terms of service are no legal advice: read them.

    Example: graduate train publish --run .graduate/runs/tickets-20261124-101500 --server graduate
    """
    from router.home import Home
    from training import parity, review_gate
    from training.commands import newest, operator_errors

    place = Home(home)
    with operator_errors():
        target = _kind(server)
        reached = _server(
            server_url, served_as, kind, adapter_source, parity.Limits(least, least_prefix)
        )
        limits = review_gate.Limits(max_open_flags, min_reviewed, min_agreement)
        folder = run or newest(place.runs, "*-*", "run")
        signed = _terms(terms, accept_terms)
        asked = _asked(
            folder, place, policy, name, target, rows, force, signed, teacher, database, limits, reached
        )  # fmt: skip
        _publish(asked, as_json)


def _asked(
    run: Path, place: "Home", policy: Path | None, name: str | None, target: "Kind | None", rows: int, force: str | None,
    signed: tuple[Any, Any], teachers: list[str] | None, database: str | None, reviews: Any, server: "Server | None",
) -> "Asked":  # fmt: skip
    from training.publish_run import Asked

    own = place.policy if place.policy.exists() else None  # elsewhere on a machine that only trains
    return Asked(
        run=run, place=place, policy=policy or own, name=name, target=target, rows=rows, force=force, register=signed[0],
        signature=signed[1], teachers=tuple(teachers or ()), database=database or place.database_url, reviews=reviews,
        server=server,
    )  # fmt: skip


def _publish(asked: "Asked", as_json: bool) -> None:
    """Gates, their table, the registry.

    Raises:
        PublishRefused: a gate said no; the table is shown all the same.
        DataError: the adapter's files are not whole.
    """
    from serving.registry import RegistryError
    from training import publish_run
    from training.commands import err, out, progress_bar
    from training.errors import DataError, PublishRefused

    try:
        with progress_bar(as_json) as tell:
            checked = publish_run.check(asked, tell)
        try:
            reference = publish_run.put(asked, checked)
        except PublishRefused:
            if as_json:
                typer.echo(json.dumps(_result(checked.conclusion, None, asked.run)))
            else:
                show(checked.conclusion, err)
            raise
    except RegistryError as why:
        raise DataError(str(why)) from why
    if as_json:
        typer.echo(json.dumps(_result(checked.conclusion, reference, asked.run)))
        return
    show(checked.conclusion, out)
    _show_next(asked, checked.conclusion, reference)


def _kind(said: str | None) -> "Kind | None":
    """The kind of server that the caller names.

    Raises:
        ConfigError: there is no such kind.
    """
    from training.errors import ConfigError
    from training.servers import SERVERS

    if said is not None and said not in SERVERS:
        hint = "; a running server is named by --server-url" if "://" in said else ""
        raise ConfigError(f"--server {said!r}: allowed: {', '.join(SERVERS)}{hint}")
    return said


def _server(
    url: str | None, served_as: str | None, kind: str, adapter_source: str | None, limits: Any
) -> "Server | None":
    """The running server; None when no one was named.

    Raises:
        ConfigError: an unknown dialect, no http address, or what is said of a server that is not named.
    """
    from training.errors import ConfigError
    from training.form import address
    from training.parity import dialect
    from training.publish_run import Server

    speaks = dialect(kind)
    if url is None:
        for flag, said in (("--served-as", served_as), ("--adapter-source", adapter_source)):
            if said is not None:
                raise ConfigError(f"{flag} {said!r}: name the running server by --server-url")
        return None
    return Server(address(url, "--server-url"), speaks, served_as, adapter_source, limits)


def _terms(file: Path | None, said: tuple[str, str] | None) -> tuple[Any, Any]:
    """The register of terms, and who signs."""
    import datetime

    from training import terms

    return terms.load(file), terms.sign(said, datetime.datetime.now(datetime.UTC))


def _result(
    conclusion: "Conclusion", reference: "AdapterRef | None", run: Path
) -> dict[str, object]:
    return {"adapter": reference.id if reference else None, "run": str(run), **asdict(conclusion)}


def show(conclusion: "Conclusion", console: Any) -> None:
    """A line for each gate, then the conclusion and why."""
    from rich.table import Table

    colours = {"passed": "green", "failed": "red", "not measured": "yellow"}
    table = Table("gate", "figure", "limit", "outcome", title="gates")
    for gate in conclusion.gates:
        is_warning = gate.state == "failed" and gate.stops == "never"
        colour = "yellow" if is_warning else colours[gate.state]
        word = "failed (warns)" if is_warning else gate.state
        table.add_row(gate.name, gate.figure, gate.limit, f"[{colour}]{word}[/]")
    console.print(table)
    console.print(f"conclusion: [bold]{conclusion.verdict}[/]", highlight=False)
    for reason in conclusion.reasons:
        console.print(f"• {reason}", highlight=False, markup=False, soft_wrap=True)


def _show_next(asked: "Asked", conclusion: "Conclusion", reference: "AdapterRef") -> None:
    from training.commands import out
    from training.servers import FILE
    from training.terms import NOTICE

    if asked.force and conclusion.verdict == "do not graduate":
        out.print(f"published all the same: {asked.force}", highlight=False, markup=False)
    out.print(f"published [bold]{reference.id}[/]", highlight=False)
    out.print(f"terms of service: {NOTICE}", highlight=False, soft_wrap=True)
    then = ", then `mode: hybrid` with cascade.min_confidence from the evaluation"
    out.print(
        f"next: `mode: dark_launch` with `student: {{adapter: {reference.name}, version: {reference.version}}}` in the policy"
        + ("" if conclusion.verdict == "graduate" else then)
        + f"; how each server serves it: {FILE} beside it, `graduate train export --adapter {reference.id} --server vllm`",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="publish")(publish)
