"""`graduate monitor review claim`, `schema`, `second`, `agreement`. Imports nothing heavy until a command runs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monitoring.commands import (
    DatabaseOption,
    HomeOption,
    JsonOption,
    PolicyOption,
    RouteOption,
    open_policy,
    operator_errors,
    out,
    route_named,
)
from router.home import Home

if TYPE_CHECKING:
    from monitoring.store import Store

ByOption = Annotated[
    str, typer.Option("--by", help="Who reviews.", envvar=["GRADUATE_REVIEWER", "USER"])
]
FlagArgument = Annotated[str, typer.Argument(metavar="FLAG", help="Id of the flag.")]
RouteArgument = Annotated[str, typer.Argument(metavar="ROUTE", help="Route of the policy.")]


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    app.command(name="claim")(claim)
    app.command(name="schema")(schema)
    app.command(name="second")(second)
    app.command(name="agreement")(agreement)


def _store(home: Path, database: str | None) -> "Store":
    from monitoring.store import open_store

    return open_store(database or Home(home).database_url)


def claim(
    flag_id: FlagArgument,
    by: ByOption = "reviewer",
    home: HomeOption = Path(".graduate"),
    database: DatabaseOption = None,
) -> None:
    """Take a flag, so that nobody else reviews it at the same time; `review undo` gives it back.

    Example: graduate monitor review claim 3f0c… --by ada
    """
    from monitoring.review import ReviewQueue

    with operator_errors():
        ReviewQueue(_store(home, database)).claim(flag_id, by)
    typer.echo(f"{flag_id}: claimed by {by}")


def schema(
    route: RouteArgument,
    home: HomeOption = Path(".graduate"),
    policy: PolicyOption = None,
) -> None:
    """Print the JSON Schema of what a label of the route may hold.

    Example: graduate monitor review schema tickets
    """
    from monitoring.review import label_schema

    with operator_errors():
        found = route_named(open_policy(Home(home), policy), route)
        assert found is not None
        typer.echo(json.dumps(label_schema(found.answer), ensure_ascii=False))


def second(
    flag_id: Annotated[
        str | None,
        typer.Argument(metavar="[FLAG]", help="Id of a decided flag; none lists those that wait."),
    ] = None,
    verdict: Annotated[
        str | None, typer.Option(help="accept_teacher, accept_student, correct or discard.")
    ] = None,
    answer: Annotated[str | None, typer.Option(help="The right answer, for correct.")] = None,
    note: Annotated[str | None, typer.Option(help="A remark.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take the second opinion back.")] = False,
    by: ByOption = "reviewer",
    route: RouteOption = None,
    limit: Annotated[int, typer.Option(help="Flags at most.", min=1)] = 20,
    home: HomeOption = Path(".graduate"),
    policy: PolicyOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look a second time at flags that somebody else has decided, without sight of the verdict; labels stay as they are.

    Example: graduate monitor review second 3f0c… --verdict accept_teacher --by bob
    """
    from monitoring import show
    from monitoring.double_review import DoubleReview
    from monitoring.errors import ReviewError
    from monitoring.review import ReviewQueue

    with operator_errors():
        store = _store(home, database)
        doubles = DoubleReview(store)
        if flag_id is None:
            bodies = [_blind(flag) for flag in doubles.waiting(by, route, limit)]
            if as_json:
                typer.echo(json.dumps(bodies))
                return
            for body in bodies:
                show.flag(out, body)
            if not bodies:
                out.print(f"nothing that waits for a second opinion of {by}", markup=False)
            return
        if undo:
            doubles.undo(flag_id)
            typer.echo(f"{flag_id}: second opinion taken back")
            return
        if verdict is None:
            raise ReviewError(
                "--verdict: allowed: accept_teacher, accept_student, correct, discard"
            )
        spec = route_named(open_policy(Home(home), policy), ReviewQueue(store).get(flag_id).route)
        chosen = doubles.give(
            flag_id, verdict, answer, by=by, note=note, spec=spec.answer if spec else None
        )
    found = {"flag_id": flag_id, "verdict": verdict, "answer": chosen, "by": by}
    typer.echo(json.dumps(found) if as_json else f"{flag_id}: {verdict}: {chosen or 'discarded'}")


def _blind(flag: object) -> dict[str, object]:
    names = ("id", "route", "kind", "reason", "input_text", "teacher_text", "student_text")
    return {name: getattr(flag, name) for name in names}


def agreement(
    route: RouteArgument,
    home: HomeOption = Path(".graduate"),
    policy: PolicyOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far two people agree on the route's flags: share with interval, Cohen's kappa, where they differ.

    Example: graduate monitor review agreement tickets --json
    """
    from monitoring import show
    from monitoring.double_review import DoubleReview

    with operator_errors():
        spec = route_named(open_policy(Home(home), policy), route)
        found = DoubleReview(_store(home, database)).agreement(route, spec.answer if spec else None)
    if as_json:
        typer.echo(json.dumps(asdict(found), ensure_ascii=False))
        return
    if not found.agreed.rows:
        out.print("no flag has two reviews yet: graduate monitor review second")
        return
    out.print(
        f"agreed: {show.interval(asdict(found.agreed))}; Cohen's kappa {found.kappa:.2f}",
        highlight=False,
    )
    for split in found.splits[:10]:
        first, second_ = split.first_answer or "discarded", split.second_answer or "discarded"
        out.print(
            f"{split.flag_id}: {split.first_by}: {first} · {split.second_by}: {second_}",
            highlight=False, markup=False,
        )  # fmt: skip
