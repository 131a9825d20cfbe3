"""`graduate train pairs`: gold, reviews, votes and feedback to pairs of a better and a worse answer, counted by source."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from router.records import Record
    from training.dataset import Dataset
    from training.preference import Judgement, Pairs

Tell = Callable[[str, int, int, float | None], None]


def pairs(
    dataset: Annotated[
        Path | None, typer.Option(help="Dataset folder; default: the newest one in the home.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Run whose student is asked for its errors on rows with a gold answer."),
    ] = None,
    home: Annotated[Path, typer.Option(help="State folder.")] = Path(".graduate"),
    votes: Annotated[
        list[Path] | None,
        typer.Option(help="Votes of teachers (`train label --samples`); again for more files."),
    ] = None,
    traffic: Annotated[
        bool, typer.Option(help="Read feedback and reviewed records off the log.")
    ] = True,
    log: Annotated[
        list[str] | None, typer.Option(help="Read these logs instead of HOME's.")
    ] = None,
    database: Annotated[
        str | None, typer.Option(help="URL of the reviews; default HOME/graduate.db.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pairs; default HOME/pairs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make preference pairs: gold over the student's error, edits over what was edited, votes, thumbs. Test rows never are.

    Example: graduate train pairs --run .graduate/runs/tickets-20261124-101500 --votes votes.jsonl
    """
    from router.home import Home
    from training import preference as core
    from training.commands import newest, operator_errors, progress_bar
    from training.dataset import Dataset

    place = Home(home)
    with operator_errors():
        data = Dataset.load(dataset or newest(place.datasets, "*-*", "dataset"))
        found: list[Judgement] = []
        with progress_bar(quiet=as_json) as tell:
            if run is not None:
                found += _errors(run, data, place, tell)
            if traffic:
                found += _logged(data, log or place.traffic, database or place.database_url)
            found += _voted(data, votes or [])
        made, dropped = core.pair_up(found, data.info, data.examples)
        saved = core.save(out or home / "pairs", made, dropped, data.info)
    _show(saved, as_json)


def _errors(run: Path, data: "Dataset", place: Any, tell: Tell) -> "list[Judgement]":
    """The run's student, asked all training and validation rows that have a gold answer."""
    from training import lora, preference
    from training.commands import open_base_model
    from training.encode import answer_limit
    from training.evaluate_command import open_origin
    from training.predict import ModelPredictor

    origin = open_origin(run)
    rows = [e for e in (*data.of("train"), *data.of("validation")) if e.gold is not None]
    if not rows:
        return []
    base = open_base_model(origin["model"], place)
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        tell("the student's answers", done, len(rows), None)

    student = ModelPredictor(
        "student",
        lora.load_adapter(base.model, run / "adapter"),
        base.tokenizer,
        data.info.prompt,
        data.info.max_input_chars,
        answer_limit(data.examples, base.tokenizer),
    )
    answers = [found.text for found in student.predict(rows, count)]
    return preference.from_gold(rows, answers)


def _logged(data: "Dataset", logs: list[str] | Path, database: str) -> "list[Judgement]":
    """Feedback in the log, and reviewers' answers over what the log says was answered."""
    from router.traffic import scan
    from training import preference
    from training.build_command import reviews_of

    labels = {r.record_id: r.answer for r in reviews_of(database, data.info.task)}
    reviewed: dict[str, Record] = {}
    found = []
    for record in scan(logs, routes=[data.info.task]):
        if record.id in labels:
            reviewed[record.id] = record
        if record.feedback:
            found += preference.from_feedback([record])
    return found + preference.from_reviews(reviewed, labels.items())


def _voted(data: "Dataset", files: list[Path]) -> "list[Judgement]":
    """Votes on the dataset's rows."""
    from router.answer_spec import AnswerSpec
    from training import preference
    from training.build import key_of
    from training.curate import votes

    if not files:
        return []
    cast = votes.load(files)
    rows = [
        (e.id, e.messages, cast.get(f"id:{e.id}") or cast.get(f"input:{key_of(e.messages)}") or [])
        for e in data.examples
        if e.split in ("train", "validation")
    ]
    return preference.from_votes(AnswerSpec.model_validate(data.info.answer), rows)


def _show(saved: "Pairs", as_json: bool) -> None:
    from rich.table import Table

    from training.commands import out

    info = saved.info
    if as_json:
        result = {
            "path": str(saved.path),
            "digest": info.digest,
            "counts": info.counts,
            "dropped": info.dropped,
        }
        typer.echo(json.dumps(result))
        return
    table = Table("source", "train", "validation", title=f"pairs {info.task} {info.digest}")
    for source, split in info.counts.items():
        table.add_row(source, str(split["train"]), str(split["validation"]))
    out.print(table)
    for rule, count in info.dropped.items():
        out.print(f"left out {count}: {rule}")
    out.print(f"written to {saved.path}", soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="pairs")(pairs)
