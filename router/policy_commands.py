"""`graduate router check`, `explain` and `schema`: a policy looked at without a router."""

import json
import random
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from router import policy_file
from router.errors import CallerError, PolicyError
from router.home import Home

err = Console(stderr=True)

PolicyFile = Annotated[Path, typer.Argument(help="policy.yaml", show_default=False)]
HomeOption = Annotated[
    Path, typer.Option("--home", help="State folder, for rollouts and difficulty models.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _load(policy: Path, home: Path, as_json: bool) -> policy_file.LoadedPolicy:
    place = Home(home)
    from router import auth

    try:
        loaded = policy_file.load(policy, place.rollouts, place.adapters / "difficulty")
        auth.ring_of(loaded)  # a router refuses the policy when its key file does not hold
        return loaded
    except PolicyError as why:
        if as_json:
            problems = [
                {"line": p.line, "key": p.key, "value": p.value, "allowed": p.allowed}
                for p in why.problems
            ]
            typer.echo(
                json.dumps({"ok": False, "file": why.source, "problems": problems}, default=str)
            )
        else:
            err.print(str(why), style="red", highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(2) from why


def check(
    policy: PolicyFile, home: HomeOption = Path(".graduate"), as_json: JsonOption = False
) -> None:
    """Say whether a policy holds; exit status 2 with every problem when it does not.

    Example: graduate router check policy.yaml
    """
    loaded = _load(policy, home, as_json)
    warnings = policy_file.warnings(loaded.policy)
    if as_json:
        found = {
            "ok": True,
            "digest": loaded.digest,
            "routes": list(loaded.policy.routes),
            "warnings": warnings,
        }
        typer.echo(json.dumps(found))
        return
    table = Table(
        "route", "mode", "teacher", "student", title=f"{policy}: holds, digest {loaded.digest}"
    )
    for name, route in loaded.policy.routes.items():
        student = f"{route.student.adapter}/{route.student.version}" if route.student else "-"
        table.add_row(name, route.mode, route.teacher.backend, student)
    table.add_row("(default)", "teacher", loaded.policy.default.teacher.backend, "-")
    Console().print(table)
    for warning in warnings:
        err.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)


def explain(
    policy: PolicyFile,
    request: Annotated[
        Path, typer.Argument(help="A request body as JSON; - reads standard input.")
    ],
    home: HomeOption = Path(".graduate"),
    draw: Annotated[
        float | None, typer.Option(help="The draw, 0-1; random when none is given.", min=0, max=1)
    ] = None,
    user: Annotated[str | None, typer.Option(help="x-graduate-user.")] = None,
    caller: Annotated[str | None, typer.Option(help="Name of the caller's key.")] = None,
    header: Annotated[
        list[str] | None, typer.Option(help="name=value; may be given again.")
    ] = None,
    path: Annotated[str, typer.Option(help="Path of the request.")] = "/v1/chat/completions",
    as_json: JsonOption = False,
) -> None:
    """Say which route and rule a request meets, which backend answers, why, and by which draw.

    Example: graduate router explain policy.yaml request.json --user ada --draw 0.07
    """
    from msgspec.structs import asdict

    from router.decide import DEFAULT, decide
    from router.wire import parse

    loaded = _load(policy, home, as_json)
    headers = {"x-graduate-user": user} if user else {}
    for pair in header or ():
        name, equals, value = pair.partition("=")
        if not equals:
            err.print(
                f"--header {pair!r}: allowed: name=value",
                style="red",
                highlight=False,
                markup=False,
            )
            raise typer.Exit(2)
        headers[name.lower()] = value
    try:
        body = sys.stdin.buffer.read() if str(request) == "-" else request.read_bytes()
        decision = decide(
            loaded, parse(path, headers, body, caller), random.random() if draw is None else draw
        )
    except OSError as why:
        err.print(
            f"{request}: cannot be read: {why.strerror}", style="red", highlight=False, markup=False
        )
        raise typer.Exit(2) from why
    except CallerError as why:
        err.print(f"{request}: {why}", style="red", highlight=False, markup=False)
        raise typer.Exit(2) from why
    route = loaded.policy.routes.get(decision.route) if decision.route != DEFAULT else None
    backend = loaded.policy.default.teacher.backend
    if route is not None:
        student = route.student
        backend = (
            student.backend if decision.arm == "student" and student else route.teacher.backend
        )
    found: dict[str, Any] = {**asdict(decision), "backend": backend, "policy_digest": loaded.digest}
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table("", "", show_header=False, title="decision")
    for key, value in found.items():
        table.add_row(key, str(value))
    Console().print(table)


def schema() -> None:
    """Print the JSON Schema of policy.yaml, for editors.

    Example: graduate router schema > policy.schema.json
    """
    typer.echo(json.dumps(policy_file.json_schema(), indent=2))


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    app.command(name="check")(check)
    app.command(name="explain")(explain)
    app.command(name="schema")(schema)
