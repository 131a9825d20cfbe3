"""`graduate monitor rollout`: every move of the canaries; and a person's word: approve, abort, resume."""

import json
import time
from typing import Annotated, Any

import typer

from monitoring.command_place import Place, placed
from monitoring.commands import RouteOption, operator_errors, out

app = typer.Typer()
RouteArgument = Annotated[str, typer.Argument(metavar="ROUTE", help="Route of the policy.")]
ByOption = Annotated[
    str, typer.Option("--by", help="Who says so.", envvar=["GRADUATE_REVIEWER", "USER"])
]
NoteOption = Annotated[str | None, typer.Option("--note", help="Why; kept with the move.")]
ordering = placed("home", "policy", "database", "rollouts_configmap", "as_json")
"""Options of a person's word."""


@app.callback(invoke_without_command=True)
@placed("home", "policy", "database", "as_json")
def rollout(context: typer.Context, place: Place, route: RouteOption = None) -> None:
    """Every move of the canaries: its evidence, rows, bounds and error, the policy's digest, and who made it.

    Example: graduate monitor rollout --route tickets
    """
    if context.invoked_subcommand is not None:
        return
    from monitoring.rollout_events import body
    from monitoring.store import open_store

    with operator_errors():
        place.home.root.mkdir(parents=True, exist_ok=True)
        store = open_store(place.database)
        events = [body(row) for row in store.rollout_events(route)]
        store.close()
    if place.as_json:
        typer.echo(json.dumps(events))
        return
    _table(events)


def _table(events: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table("when (UTC)", "route", "move", "share", "adapter", "by", "n", "error", "evidence")
    for e in events:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(e["at"]))
        table.add_row(
            when, e["route"], e["action"], f"{100 * e['share']:.3g} %", e["adapter"] or "-",
            e["actor"] or "-", "-" if e["rows"] is None else str(e["rows"]),
            f"{100 * e['alpha']:.2g} %" if e["alpha"] else "-", evidence(e),
        )  # fmt: skip
    out.print(table)


def evidence(event: dict[str, Any]) -> str:
    """A move's gates with their always-valid bounds, or its own words."""
    found = [f"{g['name']} {g['state']}: {g['detail']}, {_bounds(g)}" for g in event["gates"] or ()]
    return "; ".join(found) or str(event["evidence"])


def _bounds(gate: dict[str, Any]) -> str:
    ends = ("…" if gate[end] is None else f"{gate[end]:.3g}" for end in ("low", "high"))
    return f"[{', '.join(ends)}] of {gate['rows']} at {100 * (1 - gate['alpha']):.3g} %"


@app.command()
@ordering
def approve(route: RouteArgument, by: ByOption, place: Place, note: NoteOption = None) -> None:
    """Let the canary leave the step that it is on, under `canary.approval: manual`; the next tick moves it.

    Example: graduate monitor rollout approve tickets --by ada --note "read 40 of its answers"
    """
    _order("approve", route, by, note, place)


@app.command()
@ordering
def abort(route: RouteArgument, by: ByOption, place: Place, note: NoteOption = None) -> None:
    """Take the student off the route at once: the routers give everything to the teacher within two seconds.

    Example: graduate monitor rollout abort tickets --by ada --note "it invents order numbers"
    """
    _order("abort", route, by, note, place)


@app.command()
@ordering
def resume(route: RouteArgument, by: ByOption, place: Place, note: NoteOption = None) -> None:
    """Let a held, inconclusive or rolled back canary go on; its evidence and its error begin anew.

    Example: graduate monitor rollout resume tickets --by ada --note "audits doubled"
    """
    _order("resume", route, by, note, place)


def _order(word: str, route: str, by: str, note: str | None, place: Place) -> None:
    import datetime

    from monitoring.kube import rollouts_in_cluster
    from monitoring.orders import order
    from monitoring.store import open_store

    home = place.home
    home.root.mkdir(parents=True, exist_ok=True)
    with operator_errors(), rollouts_in_cluster(home.rollouts, place.rollouts_configmap):
        store = open_store(place.database)
        event = order(
            store, place.policy, home.rollouts, home.adapters, route, word, by=by, note=note,
            now=datetime.datetime.now(datetime.UTC),
        )  # fmt: skip
        store.close()
    if place.as_json:
        found = {"route": route, "action": word, "by": event.actor, "key": event.key}
        typer.echo(json.dumps({**found, "state": event.state.model_dump(mode="json")}))
        return
    share = f"{100 * event.state.share:.3g} %"
    typer.echo(f"{route}: {event.reason}; {event.state.state}, share {share}")
