"""`graduate train build`: flags to a query, the query to a dataset, the dataset to a table."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from training.errors import ConfigError

if TYPE_CHECKING:
    from training.build import Row, SplitBy
    from training.dataset import Dataset
    from training.imports import Imported


def since(text: str | None, now: float) -> float | None:
    """Epoch seconds of "7d", "12h" (that long ago) or an ISO 8601 time.

    Raises:
        ConfigError: anything else.
    """
    import datetime

    from router.quantities import seconds

    if text is None:
        return None
    if re.fullmatch(r"[\d.]+(ms|s|m|h|d)", text):
        return now - seconds(text)
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError as why:
        raise ConfigError(f'{text!r}: allowed: "7d", "12h", or an ISO 8601 time') from why
    return at.replace(tzinfo=at.tzinfo or datetime.UTC).timestamp()


def build(
    route: Annotated[str, typer.Option(help="Route of the policy.")],
    home: Annotated[Path, typer.Option(help="State folder.")] = Path(".graduate"),
    policy: Annotated[
        Path | None, typer.Option(help="Policy file; default HOME/policy.yaml.")
    ] = None,
    since_: Annotated[
        str | None, typer.Option("--since", help='Only traffic since: "7d" or ISO 8601.')
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only traffic before.")] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(help="More rows: JSON Lines, CSV, or another tool's export; again for more."),
    ] = None,
    test_file: Annotated[
        list[Path] | None, typer.Option(help="Rows that are test rows for good.")
    ] = None,
    gold_file: Annotated[
        list[Path] | None,
        typer.Option(help="Gold answers for logged inputs: rows with input and gold."),
    ] = None,
    input_key: Annotated[str, typer.Option(help="Key of the input in files.")] = "text",
    teacher_key: Annotated[
        str, typer.Option(help="Key of the teacher's answer in files.")
    ] = "teacher",
    gold_key: Annotated[str, typer.Option(help="Key of the gold answer in files.")] = "gold",
    form: Annotated[
        str | None,
        typer.Option("--format", help="Format of the files; default: by their first row."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="More of a CSV: id=NAME, user=NAME, at=NAME, system=NAME, gold='{\"is_bad\": {}}'."
        ),
    ] = None,
    preview: Annotated[
        bool, typer.Option(help="Only show how the files are read: format, counts, first row.")
    ] = False,
    traffic: Annotated[bool, typer.Option(help="Read the traffic log.")] = True,
    log: Annotated[
        list[str] | None,
        typer.Option(
            help="Read these logs instead of HOME's: folders of segments, shipped logs, s3:// addresses."
        ),
    ] = None,
    test_share: Annotated[float, typer.Option(min=0, max=0.9)] = 0.2,
    validation_share: Annotated[float, typer.Option(min=0, max=0.9)] = 0.15,
    seed: Annotated[int, typer.Option(help="Of the splits.")] = 0,
    split_by: Annotated[
        str, typer.Option(help="lot: by each input's hash. time: the newest rows are tests.")
    ] = "lot",
    database: Annotated[
        str | None, typer.Option(help="URL of the reviews; default HOME/graduate.db.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Build a dataset from the traffic log, reviews and files.

    Example: graduate train build --route tickets --since 7d
    """
    from router.home import Home
    from training import build as core
    from training import imports
    from training.commands import counted, open_route, operator_errors, policy_path, progress_bar
    from training.import_formats import Columns

    place = Home(home)
    with operator_errors():
        by = _split_by(split_by)
        options = core.BuildOptions(test_share, validation_share, seed, split_by=by)
        columns = Columns.parse(core.Keys(input_key, teacher_key, gold_key), column or [])
        read = [imports.read(path, columns, form=form) for path in file or []]
        read += [imports.read(path, columns, form=form, fixed="test") for path in test_file or []]
        if preview:
            return _preview(read, as_json)
        _, chosen = open_route(policy_path(place, policy), route)
        now = time.time()
        logs = Logs(log or place.traffic, since(since_, now), since(until, now))
        with progress_bar(as_json) as bar:
            rows = (
                list(counted(logs.rows(route), "rows of the traffic log", bar)) if traffic else []
            )
            rows += [row for one in read for row in one.rows]
            core.check_gold((row for one in read for row in one.rows), chosen.answer)
            reviews = reviews_of(database or place.database_url, route)
            gold = [
                g for path in gold_file or [] for g in imports.read(path, columns, form=form).rows
            ]
            core.check_gold(gold, chosen.answer)
            query = {
                "route": route, "since": since_, "until": until, "traffic": traffic,
                "files": [str(p) for p in file or []], "test_files": [str(p) for p in test_file or []],
                "imports": [one.summary() for one in read], "reviews": len(reviews), "seed": seed,
                **({"split_by": split_by} if split_by != "lot" else {}),
            }  # fmt: skip
            dataset = core.build(
                core.with_gold(core.with_reviews(rows, reviews), gold), chosen, route, place.datasets,
                query=query, options=options, tell=lambda done, total: bar("near-duplicates", done, total, None),
            )  # fmt: skip
    _show(dataset, as_json)


def _split_by(said: str) -> "SplitBy":
    """How splits are made.

    Raises:
        ConfigError: there is no such way.
    """
    if said not in ("lot", "time"):
        raise ConfigError(f"--split-by {said!r}: allowed: lot, time")
    return cast("SplitBy", said)


@dataclass(frozen=True, slots=True)
class Logs:
    """The traffic that a dataset is built from."""

    where: Any
    """One folder or several, or addresses, as `router.traffic.scan` takes them."""
    since: float | None
    until: float | None

    def rows(self, route: str) -> "Iterator[Row]":
        """The route's answered requests in that time."""
        from router.traffic import scan
        from training.build import rows_from_traffic

        records = scan(self.where, routes=[route], since=self.since, until=self.until)
        return rows_from_traffic(records)


def reviews_of(url: str, route: str) -> list[Any]:
    """Labels of the review queue, as the builder reads them; none when no monitor has run yet."""
    from monitoring.review import ReviewQueue
    from monitoring.store import open_store
    from training.build import Reviewed

    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return []
    labels = ReviewQueue(open_store(url)).labels(route=route)
    return [Reviewed(label.record_id, label.answer) for label in labels]


def _preview(read: "list[Imported]", as_json: bool) -> None:
    """How each file was understood, before anything is built on it."""
    from training.commands import out

    if as_json:
        typer.echo(json.dumps([one.summary() | {"first": one.first()} for one in read]))
        return
    for one in read:
        out.print(f"[bold]{one.path}[/]: {one.format}, {len(one.rows)} rows", soft_wrap=True)
        for reason, count in one.skipped.items():
            out.print(f"  passed over {count}: {reason}")
        for name, value in one.first().items():
            out.print(f"  {name}: {value}", markup=False, highlight=False)


def _show(dataset: "Dataset", as_json: bool) -> None:
    from rich.table import Table

    from training.commands import out

    info = dataset.info
    rules = dict(Counter(d.rule for d in info.dropped))
    gold = sum(e.gold is not None for e in dataset.examples)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "path": str(dataset.path), "digest": info.digest, "counts": info.counts,
                    "classes": info.classes, "gold": gold, "dropped": rules,
                    "reviews": info.query.get("reviews", 0), "teachers": list(info.teachers),
                }
            )
        )  # fmt: skip
        return
    table = Table("split", "rows", "classes", title=f"dataset {info.task} {info.digest}")
    for split, count in info.counts.items():
        table.add_row(split, str(count), str(len(info.classes.get(split, {})) or "-"))
    out.print(table)
    out.print(f"{gold} rows with a gold answer; {info.query.get('reviews', 0)} reviews read")
    for one in info.query.get("imports", ()):
        for reason, count in one["skipped"].items():
            out.print(f"{one['file']}: passed over {count}: {reason}", soft_wrap=True)
    for rule, count in rules.items():
        out.print(f"dropped {count}: {rule}")
    out.print(f"written to {dataset.path}", soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="build")(build)
