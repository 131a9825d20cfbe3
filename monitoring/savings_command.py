"""`graduate monitor savings`: spent and saved, by route and day, and the traffic at which a student pays."""

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from monitoring.command_place import Place, placed
from monitoring.commands import (
    RouteOption,
    SinceOption,
    err,
    open_policy,
    operator_errors,
    out,
    progress,
    route_named,
    scanned,
    seconds_of,
)

if TYPE_CHECKING:
    from monitoring.savings import Day, RouteSavings, Savings


@placed("home", "policy", "log", "as_json")
def savings(
    place: Place,
    since: SinceOption = "30d",
    route: RouteOption = None,
    nodes: Annotated[
        float, typer.Option(help="Nodes that each student backend runs.", min=0.01)
    ] = 1.0,
) -> None:
    """Say what was spent and saved, at the teacher's list price against the student's node hours or tokens.

    Prices are those of the policy's backends: price.input and price.output a million tokens, price.per_hour a node.

    Example: graduate monitor savings --since 30d
    """
    from monitoring.savings import Ledger

    with operator_errors():
        loaded = open_policy(place.home, place.policy)
        route_named(loaded, route)
        ledger = Ledger(loaded.policy, nodes)
        with progress(place.as_json) as tell:
            # All routes are read, because they share the node.
            for record in scanned(place.home, seconds_of("--since", since), tell, logs=place.log):
                ledger.add(record)
        found = ledger.close(time.time())
    routes = [r for r in found.routes if route in (None, r.route)]
    days = [d for d in found.days if route in (None, d.route)]
    if place.as_json:
        body = {
            "routes": [asdict(r) for r in routes], "days": [asdict(d) for d in days], "notes": list(found.notes),
        }  # fmt: skip
        typer.echo(json.dumps(body))
        return
    _show(routes, days, found)


def _usd(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}" if abs(value) >= 1 else f"{value:.4f}"


def _show(routes: "list[RouteSavings]", days: "list[Day]", found: "Savings") -> None:
    from rich.table import Table

    if not routes:
        out.print("no traffic in the log")
        return
    table = Table(
        "route", "day (UTC)", "requests", "by student", "at list price", "spent", "saved",
        title="US dollars",
    )  # fmt: skip
    for d in days:
        table.add_row(
            d.route, d.day, f"{d.requests:,}", f"{d.by_student:,}",
            *(_usd(v) for v in (d.baseline_usd, d.spent_usd, d.saved_usd)),
        )  # fmt: skip
    out.print(table)
    for r in routes:
        for gap in r.missing:
            err.print(f"note: {r.route}: {gap}", highlight=False, markup=False, soft_wrap=True)
        out.print(_sentence(r), highlight=False, markup=False, soft_wrap=True)
    for note in found.notes:
        err.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def _sentence(r: "RouteSavings") -> str:
    saved = "savings are not known" if r.saved_usd is None else f"saved {_usd(r.saved_usd)} USD"
    if r.break_even_a_day is None:
        return f"{r.route}: {saved}; break-even: {r.why_not}"
    return (
        f"{r.route}: {saved}; the student answers {r.by_student_a_day:,.0f} requests a day, and its node "
        f"({_usd(r.node_usd_a_day)} USD a day) pays from {r.break_even_a_day:,.0f} on"
    )


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="savings")(savings)
