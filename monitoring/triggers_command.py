"""`graduate monitor triggers`: is it time to train again, and why."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitoring.command_place import Place, placed
from monitoring.commands import (
    RouteOption,
    err,
    open_policy,
    operator_errors,
    out,
    route_named,
    seconds_of,
    share_of,
)

if TYPE_CHECKING:
    from monitoring.triggers import TriggerRule


@placed("home", "policy", "database", "as_json")
def triggers(
    place: Place,
    route: RouteOption = None,
    max_disagreement: Annotated[
        str | None,
        typer.Option(
            help='Disagreement that is too much: "5%"; default: canary.gates.disagreement.'
        ),
    ] = None,
    min_labels: Annotated[
        int, typer.Option(help="New labels that are enough to train on.", min=1)
    ] = 200,
    shutdown_within: Annotated[
        str, typer.Option(help="How long before its shutdown a teacher is told.")
    ] = "90d",
    ask_teachers: Annotated[
        bool, typer.Option(help="Ask the teachers' GET /v1/models for shutdown dates.")
    ] = True,
) -> None:
    """Say whether a student should be distilled again: drift, disagreement, new labels, a teacher that shuts down.

    Looks at the last tick's reports. Each event is told as new once, and stays in the database.

    Example: graduate monitor triggers --min-labels 200 --shutdown-within 90d --json
    """
    from monitoring.triggers import TriggerRule

    with operator_errors():
        rule = TriggerRule(
            None if max_disagreement is None else share_of("--max-disagreement", max_disagreement),
            min_labels,
            seconds_of("--shutdown-within", shutdown_within),
        )
        events, failures = _events(place, route, rule, ask_teachers)
    if place.as_json:
        typer.echo(json.dumps({"events": events, "notes": failures}))
        return
    for note in failures:
        err.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    for event in events:
        state = "new" if event["new"] else "due" if event["due"] else "past"
        line = f"{state:<4} {event['route']}: {event['kind']}: {event['reason']}"
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    if not events:
        out.print("nothing says that a student should be trained again")


def _events(
    place: Place,
    route: str | None,
    rule: "TriggerRule",
    ask_teachers: bool,
) -> tuple[list[dict[str, Any]], list[str]]:
    """All events that were ever due, `new` and still `due` marked; and teachers that could not be asked."""
    import datetime

    from monitoring.settings import MonitorSettings
    from monitoring.store import open_store
    from monitoring.trigger_store import announced, evidence, remember, triggers
    from monitoring.triggers import due

    loaded = open_policy(place.home, place.policy)
    route_named(loaded, route)
    names = [
        name for name, spec in loaded.policy.routes.items()
        if spec.student is not None and route in (None, name)
    ]  # fmt: skip
    place.home.root.mkdir(parents=True, exist_ok=True)
    settings = MonitorSettings(place.policy, place.home, place.database)
    store = open_store(settings.database)
    dates, failures = announced(loaded.policy, names) if ask_teachers else ({}, [])
    now = datetime.datetime.now(datetime.UTC)
    found = [t for n in names for t in due(rule, evidence(settings, store, loaded, n, dates), now)]
    new = {t.id for t in remember(store, found, now.timestamp())}
    rows = triggers(store, route)
    store.close()
    still = {t.id for t in found}
    return [
        {
            "id": row.id, "route": row.route, "kind": row.kind, "subject": row.subject, "reason": row.reason,
            "evidence": row.evidence, "at": row.at, "new": row.id in new, "due": row.id in still,
        }
        for row in rows
    ], failures  # fmt: skip


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="triggers")(triggers)
