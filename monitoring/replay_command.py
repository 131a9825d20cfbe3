"""`graduate monitor replay`: a policy on logged traffic, side by side with the present one and with what happened."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from monitoring.replay import PolicyReplay, RouteReplay


@placed("home", "policy", "log", "as_json")
def replay(
    proposed: Annotated[
        Path,
        typer.Argument(metavar="POLICY", help="The policy to try.", show_default=False),
    ],
    place: Place,
    since: SinceOption = "7d",
    route: RouteOption = None,
) -> None:
    """Say what a policy would have done on logged traffic, before it does it.

    Decisions are computed again from the records. Agreement, cost and latency are read off requests that both answered,
    weighted by the logged probability of that; what callers of a canary saw, by the logged propensity. --policy names
    the present policy that it is laid beside.

    Example: graduate monitor replay proposed.yaml --since 7d
    """
    from monitoring.replay import Replay

    with operator_errors():
        home = place.home
        new, present = open_policy(home, proposed), open_policy(home, place.policy)
        if route is not None and route not in new.policy.routes:
            route_named(new, route)
        tried, now = Replay(new, route), Replay(present, route)
        with progress(place.as_json) as tell:
            for record in scanned(home, seconds_of("--since", since), tell, logs=place.log):
                tried.add(record)
                now.add(record)
    body = {"proposed": tried.result(), "present": now.result()}
    if place.as_json:
        typer.echo(json.dumps({name: asdict(found) for name, found in body.items()}))
        return
    _show(body["present"], body["proposed"])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _share(estimate: Any) -> str:
    if estimate is None:
        return "-"
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.value:.2f} % ({low:.2f}-{high:.2f}; {estimate.rows} pairs, ESS {estimate.ess:.0f})"


def _figure(unit: str, digits: int) -> Callable[[Any], str]:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.{digits}f}{unit}"

    return shown


_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("records", "records", str),
    ("student is asked", "student_arm", _percent),
    ("student answers", "student_served", _percent),
    ("replies agree with the teacher", "agreement", _share),
    ("student's replies disagree", "disagreement", _share),
    ("tokens of 1,000 replies", "usd_per_1000", _figure(" USD", 4)),
    ("tokens of their copies", "copies_usd_per_1000", _figure(" USD", 4)),
    ("latency, mean", "seconds_mean", _figure(" s", 3)),
    ("latency, 95 % below", "seconds_p95", _figure(" s", 3)),
)


def _show(present: "PolicyReplay", proposed: "PolicyReplay") -> None:
    from rich.table import Table

    for name in sorted({*present.routes, *proposed.routes}):
        before, after = present.routes.get(name), proposed.routes.get(name)
        table = Table(f"route {name}", f"present {present.digest}", f"proposed {proposed.digest}")
        for title, key, shown in _ROWS:
            table.add_row(
                title, *("-" if r is None else shown(getattr(r, key)) for r in (before, after))
            )
        for what in sorted({*(before.seen if before else ()), *(after.seen if after else ())}):
            table.add_row(f"seen by callers: {what}", _seen(before, what), _seen(after, what))
        out.print(table)
        for title, found in (("present", before), ("proposed", after)):
            for note in found.notes if found else ():
                err.print(f"note: {title}: {note}", highlight=False, markup=False, soft_wrap=True)
    _say_what_is_unknown(present, proposed)


def _seen(found: "RouteReplay | None", what: str) -> str:
    estimate = found.seen.get(what) if found else None
    if estimate is None:
        return "-"
    return f"{estimate.value:.4g} ({estimate.low:.4g}-{estimate.high:.4g}; ESS {estimate.ess:.0f})"


def _say_what_is_unknown(present: "PolicyReplay", proposed: "PolicyReplay") -> None:
    out.print(
        f"{present.reproduced} of {present.same_digest} decisions of the present policy are reproduced; "
        f"{present.records - present.same_digest} records are of other policies",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    for line in present.differs:
        err.print(f"note: not reproduced: {line}", highlight=False, markup=False, soft_wrap=True)
    for why, count in proposed.unknown.items():
        out.print(
            f"{count} of {proposed.records} records cannot be recomputed: {why}",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    for name, found in proposed.routes.items():
        if found.approximate:
            out.print(f"{name}: {found.approximate} decisions looked at redacted text")


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="replay")(replay)
