"""`graduate monitor calibrate`: thresholds with a promise, their curve as a table and a picture, and a policy patch."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from monitoring.command_place import Place, placed
from monitoring.commands import (
    err,
    open_policy,
    operator_errors,
    out,
    progress,
    route_named,
    scanned,
    seconds_of,
    share_of,
)

if TYPE_CHECKING:
    from monitoring.calibrate_run import Outcome

Use = Literal["both", "confidence", "difficulty"]
_TABLE_ROWS = 16


@placed("home", "policy", "log", "database", "as_json")
def calibrate(
    route: Annotated[str, typer.Argument(help="Route of the policy.", show_default=False)],
    place: Place,
    max_disagreement: Annotated[
        str, typer.Option(help='Allowed among the student\'s answers: "3%" or 0.03.')
    ] = "3%",
    confidence: Annotated[str, typer.Option(help="Of the promise.")] = "95%",
    since: Annotated[str, typer.Option(help='How far back pairs count: "30d", "12h".')] = "30d",
    use: Annotated[
        Use, typer.Option(help="Thresholds on the student's confidence, on difficulty, or both.")
    ] = "both",
    adapter: Annotated[
        str | None, typer.Option(help="name/version; default: that of the newest pair.")
    ] = None,
    patch: Annotated[
        Path | None,
        typer.Option(help="Where the patch goes; default HOME/reports/calibrate-ROUTE.yaml."),
    ] = None,
) -> None:
    """Find how much the student may answer alone, with a promise that holds at a finite number of pairs.

    Pairs come from the shadows and audits of the traffic log. The difficulty model goes beside the adapters, the
    suggestion into a policy patch, the curve into a picture beside it; policy.yaml is yours and stays as it is.

    Example: graduate monitor calibrate tickets --max-disagreement 3% --confidence 95%
    """
    with operator_errors():
        limit = share_of("--max-disagreement", max_disagreement)
        sure = share_of("--confidence", confidence)
        for option, value in (("--max-disagreement", limit), ("--confidence", sure)):
            if not 0 < value < 1:
                raise ValueError(f"{option} = {value:g}: allowed: between 0 and 1, both excluded")
        home = place.home
        loaded = open_policy(home, place.policy)
        spec = route_named(loaded, route)
        if spec is None or spec.student is None:
            raise ValueError(f"route {route!r} has no student to calibrate")
        from monitoring import calibrate_report, calibrate_run
        from monitoring.verdicts import verdicts_of

        with progress(place.as_json) as tell:
            seconds = seconds_of("--since", since)
            said = verdicts_of(place.database, route, spec, time.time() - seconds)
            records = map(said.over, scanned(home, seconds, tell, route, place.log))
            outcome = calibrate_run.run(
                records, loaded, route, limit=limit, confidence=sure, use=use, adapter=adapter,
                tell=tell,
            )  # fmt: skip
        default = home.reports / f"calibrate-{route}.yaml"
        files = calibrate_report.write(outcome, patch or default, home.adapters / "difficulty")
    body = calibrate_report.plain(outcome, files)
    if place.as_json:
        typer.echo(json.dumps(body))
        return
    _show(outcome, body)


def _show(outcome: "Outcome", body: dict[str, Any]) -> None:
    from rich.table import Column, Table

    found = outcome.calibration
    table = Table(
        Column(min_width=9, no_wrap=True), "student", "disagrees (95 %)", "USD/1,000", "min_confidence",
        "max difficulty", title=f"{outcome.route}, {outcome.adapter}: {found.test_pairs} pairs tested",
    )  # fmt: skip
    for step in _thinned(body["curve"]):
        table.add_row(
            "suggested" if step["chosen"] else "holds" if step["accepted"] else "",
            f"{100 * step['share']:.1f} %", _rate(step["disagreement"]),
            "-" if step["usd_per_1000"] is None else f"{step['usd_per_1000']:.3f}",
            _figure(step["min_confidence"]), _figure(step["max_difficulty"]),
        )  # fmt: skip
    if body["curve"]:
        out.print(table)
    for note in body["notes"]:
        err.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    out.print(body["says"], highlight=False, markup=False, soft_wrap=True)
    for what, path in body["files"].items():
        out.print(f"{what}: {path}", highlight=False, markup=False, soft_wrap=True)


def _rate(estimate: dict[str, float] | None) -> str:
    if estimate is None:
        return "-"
    low, high = 100 * estimate["low"], 100 * estimate["high"]
    return f"{100 * estimate['value']:.2f} % ({low:.1f}-{high:.1f})"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _thinned(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some of the curve's steps, the suggested one among them."""
    every = max(1, len(curve) // _TABLE_ROWS)
    return [s for i, s in enumerate(curve) if i % every == 0 or s["chosen"] or i == len(curve) - 1]


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="calibrate")(calibrate)
