"""`graduate monitor`: imports nothing heavy until a command runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitoring import (
    calibrate_command,
    compare_command,
    dashboards_command,
    double_review_command,
    replay_command,
    rollout_command,
    savings_command,
    triggers_command,
)
from monitoring.command_place import ConfigMapOption
from monitoring.commands import (
    DatabaseOption,
    HomeOption,
    JsonOption,
    LogOption,
    PolicyOption,
    RouteOption,
    SinceOption,
    err,
    named_logs,
    operator_errors,
    out,
    seconds_of,
)

if TYPE_CHECKING:
    from monitoring.settings import MonitorSettings
    from monitoring.store import Store

app = typer.Typer(no_args_is_help=True, help="Disagreement, drift, flags, reviews and rollouts.")
review_app = typer.Typer()
app.add_typer(review_app, name="review")
app.add_typer(rollout_command.app, name="rollout")
dashboards_command.register(app)
double_review_command.register(review_app)
calibrate_command.register(app)
compare_command.register(app)
replay_command.register(app)
savings_command.register(app)
triggers_command.register(app)

RowsOption = Annotated[
    int, typer.Option("--drift-rows", help="Newest rows that drift looks at.", min=1)
]
ByOption = Annotated[
    str, typer.Option("--by", help="Who reviews.", envvar=["GRADUATE_REVIEWER", "USER"])
]


Where = tuple[Path, Path | None, str | None, str, int, list[str] | None]
"""Home, policy, database, since, drift rows, logs: as the options give them."""


def _open(
    home: Path,
    policy: Path | None,
    database: str | None,
    since: str = "7d",
    drift_rows: int = 200,
    logs: list[str] | None = None,
) -> "tuple[MonitorSettings, Store]":
    from monitoring.settings import MonitorSettings
    from monitoring.store import open_store
    from router.home import Home

    place = Home(home)
    home.mkdir(parents=True, exist_ok=True)
    settings = MonitorSettings(
        policy or place.policy,
        place,
        database or place.database_url,
        seconds_of("--since", since),
        drift_rows,
        logs=named_logs(logs),
    )
    return settings, open_store(settings.database)


@app.command()
def tick(
    home: HomeOption = Path(".graduate"),
    policy: PolicyOption = None,
    database: DatabaseOption = None,
    route: RouteOption = None,
    since: SinceOption = "7d",
    drift_rows: RowsOption = 200,
    log: LogOption = None,
    rollouts_configmap: ConfigMapOption = None,
    notify: Annotated[
        bool,
        typer.Option(help="Tell the webhooks of canary.notify; a serving monitor does it itself."),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """One pass: measure, flag, move canaries, write it all down.

    Example: graduate monitor tick --home .graduate
    """
    from monitoring.kube import rollouts_in_cluster
    from router.home import Home

    where = (home, policy, database, since, drift_rows, log)
    with operator_errors(), rollouts_in_cluster(Home(home).rollouts, rollouts_configmap):
        bodies = _ticked(where, route, move=True)
    _print(bodies, as_json)
    if notify:
        _tell_others(where)


@app.command()
def report(
    home: HomeOption = Path(".graduate"),
    policy: PolicyOption = None,
    database: DatabaseOption = None,
    route: RouteOption = None,
    since: SinceOption = "7d",
    drift_rows: RowsOption = 200,
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure now, and print every route's disagreement, drift and flags; evidently's HTML goes to HOME/reports.

    Canaries stay where they are; what a tick would do with them is printed.

    Example: graduate monitor report --route tickets --since 7d
    """
    _print(_ticked((home, policy, database, since, drift_rows, log), route, move=False), as_json)


def _print(bodies: list[dict[str, Any]], as_json: bool) -> None:
    """Routes' reports: one JSON list, whichever command measured them, or tables."""
    from monitoring import show

    if as_json:
        typer.echo(json.dumps(bodies))
        return
    for body in bodies:
        show.report(out, body)
    if not bodies:
        err.print("no route with a student in this policy")


def _tell_others(where: Where) -> None:
    """After the tick, so that no slow receiver holds it up."""
    import time

    from monitoring.notices import deliver
    from router import policy_file

    with operator_errors():
        settings, store = _open(*where)
        done = deliver(store, policy_file.load(settings.policy).policy, time.time())
        store.close()
    if done.failed:
        err.print(
            f"note: {done.failed} of canary.notify did not take it; the next tick tries again"
        )


def _ticked(
    where: Where,
    route: str | None,
    *,
    move: bool,
) -> list[dict[str, Any]]:
    import datetime

    from monitoring.errors import UnknownRoute
    from router import policy_file

    with operator_errors():
        settings, store = _open(*where)
        known = policy_file.load(settings.policy).policy.routes
        if route is not None and route not in known:
            raise UnknownRoute(
                f"route {route!r}: allowed: {', '.join(known) or 'none in the policy'}"
            )
        with err.status("reading the traffic log …"):
            from monitoring.tick import plain, run_tick

            now = datetime.datetime.now(datetime.UTC)
            found = run_tick(settings, store, now=now, route=route, move=move)
        store.close()
    return [plain(r) for r in found]


@app.command()
def serve(
    home: HomeOption = Path(".graduate"),
    policy: PolicyOption = None,
    database: DatabaseOption = None,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.", min=0, max=65535)] = 8083,
    every: Annotated[str, typer.Option(help='Pause between ticks: "60s".')] = "60s",
    since: SinceOption = "7d",
    drift_rows: RowsOption = 200,
    log: LogOption = None,
    rollouts_configmap: ConfigMapOption = None,
) -> None:
    """Serve console, API and metrics, and tick again and again.

    Example: graduate monitor serve --home .graduate --port 8083
    """
    import dataclasses
    import logging
    import socket

    import uvicorn

    from monitoring.app import create_app

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with operator_errors():
        settings, store = _open(home, policy, database, since, drift_rows, log)
        settings = dataclasses.replace(
            settings,
            every_seconds=seconds_of("--every", every),
            rollouts_configmap=rollouts_configmap,
        )
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as why:
                message = f"port {port} of {host} (monitor) cannot be used: {why.strerror}; choose another with --port"
                raise OSError(message) from why
    err.print(f"monitor on http://{host}:{port}", highlight=False)
    uvicorn.run(create_app(settings, store), host=host, port=port, log_level="warning")


@review_app.callback(invoke_without_command=True)
def review(
    context: typer.Context,
    home: HomeOption = Path(".graduate"),
    policy: PolicyOption = None,
    database: DatabaseOption = None,
    route: RouteOption = None,
    by: ByOption = "reviewer",
    limit: Annotated[int, typer.Option(help="Flags at most.", min=1)] = 50,
) -> None:
    """Go through the open flags: t teacher is right, s student, c correct, d discard, n next, q quit.

    Example: graduate monitor review --route tickets --by ada
    """
    if context.invoked_subcommand is not None:
        return
    from monitoring import show
    from monitoring.app import answer_spec, flag_body
    from monitoring.review import ReviewQueue

    with operator_errors():
        settings, store = _open(home, policy, database)
        queue = ReviewQueue(store)
        flags = queue.list(route, "open", limit)
        keys = {"t": "accept_teacher", "s": "accept_student", "c": "correct", "d": "discard"}
        for number, flag in enumerate(flags, 1):
            out.rule(f"{number} of {len(flags)}")
            show.flag(out, flag_body(flag))
            key = typer.prompt("[t]eacher [s]tudent [c]orrect [d]iscard [n]ext [q]uit", default="n")
            if key == "q":
                return
            if key not in keys:
                continue
            answer = typer.prompt("right answer", default=flag.teacher_text) if key == "c" else None
            spec = answer_spec(settings.policy, flag.route)
            queue.decide(flag.id, keys[key], answer, by=by, spec=spec)
    if not flags:
        out.print("nothing to review")


@review_app.command(name="list")
def review_list(
    home: HomeOption = Path(".graduate"),
    policy: PolicyOption = None,
    database: DatabaseOption = None,
    route: RouteOption = None,
    status: Annotated[str, typer.Option(help="open, claimed, decided or all.")] = "open",
    limit: Annotated[int, typer.Option(help="Flags at most.", min=1)] = 50,
    as_json: JsonOption = False,
) -> None:
    """Flags, most informative first, teacher and student side by side.

    Example: graduate monitor review list --route tickets --json
    """
    from monitoring import show
    from monitoring.app import flag_body
    from monitoring.review import ReviewQueue

    with operator_errors():
        _, store = _open(home, policy, database)
        found = ReviewQueue(store).list(route, None if status == "all" else status, limit)
        bodies = [flag_body(f) for f in found]
    if as_json:
        typer.echo(json.dumps(bodies))
        return
    for body in bodies:
        show.flag(out, body)
    if not bodies:
        out.print("nothing to review")


@review_app.command(name="decide")
def review_decide(
    flag_id: Annotated[str, typer.Argument(help="Id of the flag.")],
    verdict: Annotated[
        str, typer.Option(help="accept_teacher, accept_student, correct or discard.")
    ],
    answer: Annotated[str | None, typer.Option(help="The right answer, for correct.")] = None,
    by: ByOption = "reviewer",
    note: Annotated[str | None, typer.Option(help="A remark.")] = None,
    home: HomeOption = Path(".graduate"),
    policy: PolicyOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide one flag; an answer outside the route's labels or schema is refused.

    Example: graduate monitor review decide 3f0c… --verdict accept_teacher --by ada
    """
    from monitoring.app import answer_spec
    from monitoring.review import ReviewQueue

    with operator_errors():
        settings, store = _open(home, policy, database)
        queue = ReviewQueue(store)
        spec = answer_spec(settings.policy, queue.get(flag_id).route)
        label = queue.decide(flag_id, verdict, answer, by=by, note=note, spec=spec)
    found = {
        "record_id": label.record_id,
        "answer": label.answer,
        "verdict": label.verdict,
        "by": by,
    }
    typer.echo(
        json.dumps(found) if as_json else f"{flag_id}: {verdict}: {label.answer or 'discarded'}"
    )


@review_app.command(name="undo")
def review_undo(
    flag_id: Annotated[str, typer.Argument(help="Id of the flag.")],
    home: HomeOption = Path(".graduate"),
    policy: PolicyOption = None,
    database: DatabaseOption = None,
) -> None:
    """Open a decided flag again; the decision stays in the history.

    Example: graduate monitor review undo 3f0c…
    """
    from monitoring.review import ReviewQueue

    with operator_errors():
        _, store = _open(home, policy, database)
        ReviewQueue(store).undo(flag_id)
    typer.echo(f"{flag_id}: open again")
