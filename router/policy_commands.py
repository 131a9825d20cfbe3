"""`graduate router check`, `explain` and `schema`: a policy looked at without a router."""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from router import policy_file
from router.errors import CallerError, PolicyError
from router.home import Home

if TYPE_CHECKING:
    from router.decide import Decision
    from router.policy import Policy

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

    from router.decide import decide
    from router.wire import parse

    loaded = _load(policy, home, as_json)
    headers = _named_values(header or ())
    if user:
        headers["x-graduate-user"] = user
    try:
        body = sys.stdin.buffer.read() if str(request) == "-" else request.read_bytes()
        decision = decide(
            loaded, parse(path, headers, body, caller), random.random() if draw is None else draw
        )
    except OSError as why:
        raise _refused(f"{request}: cannot be read: {why.strerror}") from why
    except CallerError as why:
        raise _refused(f"{request}: {why}") from why
    backend = _answering(loaded.policy, decision)
    found: dict[str, Any] = {**asdict(decision), "backend": backend, "policy_digest": loaded.digest}
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table("", "", show_header=False, title="decision")
    for key, value in found.items():
        table.add_row(key, str(value))
    Console().print(table)


def _named_values(pairs: Sequence[str]) -> dict[str, str]:
    """Headers of `name=value`, their names in small letters."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise _refused(f"--header {pair!r}: allowed: name=value")
        found[name.lower()] = value
    return found


def _answering(policy: "Policy", decision: "Decision") -> str:
    """The backend that answers the caller first."""
    route = policy.routes.get(decision.route)
    if route is None:
        return policy.default.teacher.backend
    student = route.student if decision.arm == "student" else None
    return student.backend if student else route.teacher.backend


def _refused(message: str) -> typer.Exit:
    err.print(message, style="red", highlight=False, markup=False)
    return typer.Exit(2)


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
