"""`graduate monitor compare`: text answers compared anew, by meaning or by a judge. Imports nothing heavy until it runs."""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from monitoring.command_place import Place, placed
from monitoring.commands import (
    SinceOption,
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
    from monitoring.text_pairs import TextPair
    from router.policy import Policy, Route

Tell = Any


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="compare")(compare)


@placed("home", "policy", "log", "database", "as_json")
def compare(
    route: Annotated[str, typer.Argument(metavar="ROUTE", help="Route of the policy.")],
    place: Place,
    by: Annotated[str, typer.Option(help="embedding or judge.")] = "embedding",
    threshold: Annotated[
        str, typer.Option(help="Embedding: cosine from which two answers agree.")
    ] = "0.7",
    encoder: Annotated[
        Path | None, typer.Option(help="Folder of the encoder; default HOME/models/minilm.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="Judge: backend of the policy; default the route's answer.compare.judge, or its teacher."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Judge: its model; default as for --backend.")
    ] = None,
    sample: Annotated[
        int, typer.Option(help="Pairs at most; a judge is asked twice for each.", min=1)
    ] = 200,
    since: SinceOption = "7d",
) -> None:
    """Compare logged text answers anew, on a sample of pairs: by the cosine of sentence vectors, or by a judge in both orders.

    Beside the rate stand the logged comparator's on the same pairs, and what the verdicts are worth against people's
    labels of the same records.

    Example: graduate monitor compare letters --by judge --sample 100 --json
    """
    from monitoring.text_pairs import sampled

    with operator_errors():
        if by not in ("embedding", "judge"):
            raise ValueError(f"--by {by!r}: allowed: embedding, judge")
        loaded = open_policy(place.home, place.policy)
        spec = route_named(loaded, route)
        assert spec is not None
        limit, since_seconds = share_of("--threshold", threshold), seconds_of("--since", since)
        with progress(place.as_json) as tell:
            pairs = sampled(scanned(place.home, since_seconds, tell, route, place.log), sample)
            if not pairs:
                raise ValueError(f"route {route!r}: no pair of text answers in the last {since}")
            bad, extra = (
                _by_embedding(pairs, encoder or place.home.models / "minilm", limit)
                if by == "embedding"
                else _by_judge(pairs, loaded.policy, spec, (backend, model), tell)
            )
        body = _body(route, by, pairs, bad, _human(place.database, route)) | extra
    if place.as_json:
        typer.echo(json.dumps(body))
    else:
        _show(body)


def _by_embedding(
    pairs: "list[TextPair]", folder: Path, limit: float
) -> tuple[dict[str, bool], dict[str, Any]]:
    from monitoring.encoder import load, similarities

    cosines = similarities(load(folder), [p.student for p in pairs], [p.teacher for p in pairs])
    bad = {pair.id: bool(value < limit) for pair, value in zip(pairs, cosines, strict=True)}
    return bad, {"threshold": limit, "mean_cosine": float(cosines.mean())}


def _by_judge(
    pairs: "list[TextPair]",
    policy: "Policy",
    route: "Route",
    named: tuple[str | None, str | None],
    tell: Tell,
) -> tuple[dict[str, bool], dict[str, Any]]:
    import httpx

    from monitoring.judge import judged
    from router.policy import judge_of

    first = judge_of(route)
    name, model = named[0] or first[0], named[1] or first[1]
    if name not in policy.backends:
        raise ValueError(f"--backend {name!r}: allowed: {', '.join(policy.backends)}")
    if model is None:
        raise ValueError("--model: the route's teacher names none; name the judge's")
    chosen = policy.backends[name]
    key = os.environ.get(chosen.api_key_env or "", "")
    headers = {"authorization": f"Bearer {key}"} if key else {}

    async def ask() -> Any:
        async with httpx.AsyncClient(
            base_url=chosen.base_url.rstrip("/") + "/", headers=headers, timeout=60
        ) as client:
            return await judged(
                client, model, pairs, tell=lambda done, total: tell("asking the judge", done, total)
            )

    try:
        found = asyncio.run(ask())
    except httpx.HTTPStatusError as why:
        raise ValueError(f"judge {model} at {chosen.base_url}: {why}") from why
    read = [one for one in found if one.winner is not None]
    if not read:
        raise ValueError(f"judge {model} at {chosen.base_url}: no verdict that can be read")
    extra = {
        "judge": model,
        "unread": len(found) - len(read),
        "inconsistent_share": sum(not one.is_consistent for one in read) / len(read),
        "student_better": sum(one.winner == "student" for one in read),
        "ties": sum(one.winner == "tie" for one in read),
    }
    return {one.pair.id: one.is_worse for one in read}, extra


def _human(database: str, route: str) -> dict[str, bool]:
    from monitoring.judge_calibration import HUMAN
    from monitoring.review import ReviewQueue
    from monitoring.store import open_store

    store = open_store(database)
    try:
        labels = ReviewQueue(store).labels(route)
    finally:
        store.close()
    return {label.record_id: HUMAN[label.verdict] for label in labels if label.verdict in HUMAN}


def _body(
    route: str,
    by: Literal["embedding", "judge"] | str,
    pairs: "list[TextPair]",
    bad: Mapping[str, bool],
    human: Mapping[str, bool],
) -> dict[str, Any]:
    from monitoring.judge_calibration import calibrated
    from monitoring.slices import Share

    logged = [pair.agree for pair in pairs if pair.id in bad and pair.agree is not None]
    both = sum(name in human for name in bad)
    return {
        "route": route,
        "by": by,
        "disagreement": asdict(Share.of(sum(bad.values()), len(bad))),
        "logged_disagreement": asdict(Share.of(sum(not a for a in logged), len(logged))),
        "calibration": asdict(calibrated(bad, human)) if both else None,
    }


def _show(body: dict[str, Any]) -> None:
    from rich.table import Table

    from monitoring.show import interval, percent

    table = Table("", "", show_header=False, title=f"{body['route']} by {body['by']}")
    table.add_row("student is worse", interval(body["disagreement"]))
    table.add_row("logged comparator, same pairs", interval(body["logged_disagreement"]))
    if "judge" in body:
        table.add_row("both orders differ", percent(body["inconsistent_share"]))
        table.add_row(
            "student better, ties, unread",
            f"{body['student_better']}, {body['ties']}, {body['unread']}",
        )
    found = body["calibration"]
    if found is not None:
        table.add_row("agrees with people", interval(found["agreed"]))
        table.add_row("catches what people call wrong", interval(found["caught"]))
        table.add_row("calls wrong what people call right", interval(found["false_alarms"]))
        if found["corrected"]:
            fixed = found["corrected"]
            table.add_row(
                "rate corrected by people",
                f"{percent(fixed['share'])} [{percent(fixed['low'])}-{percent(fixed['high'])}]",
            )
    out.print(table)
    if found is None:
        err.print(
            "note: no pair of the sample has a person's label: what these verdicts are worth is unknown",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
