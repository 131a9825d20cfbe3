"""`graduate train mistakes`: browse a run's mistakes, find their slices and the training rows behind them, flag them."""

import csv
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from router.answer_spec import AnswerSpec
    from training.dataset import Dataset
    from training.mistakes import Case, Flips, Slice, Trace

KEYS = "n next · p back · f send to the review queue · q quit"


def mistakes(
    run: Annotated[Path | None, typer.Option(help="Run folder; default: the newest one.")] = None,
    home: Annotated[Path, typer.Option(help="State folder.")] = Path(".graduate"),
    split: Annotated[
        str,
        typer.Option(help="validation, test or test_balanced. Looking at test rows spends them."),
    ] = "validation",
    which: Annotated[
        str,
        typer.Option(
            "--filter",
            help="wrong, teacher-right, teacher-wrong, disagreement, unsure, right, all.",
        ),
    ] = "wrong",
    class_name: Annotated[
        str | None, typer.Option("--class", help="Only rows of this class.")
    ] = None,
    search: Annotated[
        str | None, typer.Option(help="Only rows whose input holds this text.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="An earlier run of the same dataset: which rows were fixed or broken."),
    ] = None,
    neighbours: Annotated[
        int, typer.Option(help="Nearest training rows a mistake.", min=0, max=20)
    ] = 3,
    limit: Annotated[int, typer.Option(help="Rows shown.", min=1)] = 20,
    flag: Annotated[
        list[str] | None,
        typer.Option(help="Send this row to the review queue; may be given again."),
    ] = None,
    browse: Annotated[
        bool, typer.Option(help="One row after another, a key each: " + KEYS)
    ] = False,
    database: Annotated[
        str | None, typer.Option(help="URL of the review queue; default HOME/graduate.db.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show gold, teacher and student side by side, slices with more errors than chance, and each mistake's training rows.

    Example: graduate train mistakes --filter teacher-right --browse
    """
    from router.answer_spec import AnswerSpec
    from router.home import Home
    from training import mistakes as core
    from training.commands import newest, operator_errors
    from training.dataset import SPLITS, Dataset
    from training.errors import ConfigError
    from training.evaluate_command import open_origin

    place = Home(home)
    with operator_errors():
        if split not in SPLITS or split == "train":
            raise ConfigError(f"--split {split!r}: allowed: {', '.join(SPLITS[1:])}")
        folder = run or newest(place.runs, "*-*", "run")
        dataset = Dataset.load(Path(open_origin(folder)["dataset"]))
        spec = AnswerSpec.model_validate(dataset.info.answer)
        classes = dataset.info.classes.get(split, {})
        if class_name is not None and class_name not in classes:
            raise ConfigError(f"--class {class_name!r}: allowed: {', '.join(sorted(classes)) or 'none'}")  # fmt: skip
        rows = _cases(folder, dataset, spec, split, place, as_json)
        shown = core.choose(rows, which, class_name=class_name, search=search)
        traces = {
            t.case_id: t
            for t in core.trace(spec, shown[:limit], dataset.of("train"), neighbours)
            if neighbours
        }
        flipped = None
        if against is not None:
            earlier = _cases(against, dataset, spec, split, place, as_json)
            flipped = core.flips(earlier, rows)
        found = core.slices(rows)
        _write(folder, split, rows, found)
        queue = ReviewSender(database or place.database_url, dataset.info.task, folder)
        sent = [queue.send(_named(rows, name)) for name in flag or ()]
        if browse:
            _browse(shown, traces, queue)
            return
    if as_json:
        _print_json(rows, shown[:limit], found, flipped, traces, sent)
        return
    _print(rows, shown, limit, found, flipped, traces, sent, folder / f"mistakes-{split}.csv")


def _named(rows: "Sequence[Case]", name: str) -> "Case":
    from training.errors import ConfigError

    found = next((c for c in rows if c.id == name), None)
    if found is None:
        raise ConfigError(f"--flag {name!r}: no such row in this split")
    return found


def _cases(
    folder: Path, dataset: "Dataset", spec: "AnswerSpec", split: Any, place: Any, quiet: bool
) -> "list[Case]":
    """The split's rows with the run's answers, which are kept beside the run: asking a model again takes minutes."""
    from training import mistakes as core
    from training.errors import DataError
    from training.predict import Prediction

    examples = list(dataset.of(split))
    if not examples:
        raise DataError(f"{dataset.path}: no {split} rows")
    file = folder / f"answers-{split}.json"
    weights = folder / "adapter" / "adapter_model.safetensors"
    if not weights.exists():
        raise DataError(f"{folder}: no adapter in this run")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:16] + dataset.info.digest
    kept = _kept(file)
    if kept.get("of") != digest:
        answers = _ask(folder, dataset, examples, place, quiet)
        kept = {"of": digest, "answers": {e.id: [a.text, a.confidence] for e, a in zip(examples, answers, strict=True)}}  # fmt: skip
        file.write_text(json.dumps(kept))
    found = [Prediction(*kept["answers"][e.id]) for e in examples]
    return core.cases(spec, examples, found)


def _kept(file: Path) -> dict[str, Any]:
    """What an earlier call kept; {} without one, or when it was cut while it wrote."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _ask(
    folder: Path, dataset: "Dataset", examples: list[Any], place: Any, quiet: bool
) -> list[Any]:
    from training import lora
    from training.commands import open_base_model, progress_bar
    from training.encode import answer_limit
    from training.evaluate_command import open_origin
    from training.predict import ModelPredictor

    base = open_base_model(open_origin(folder)["model"], place)
    student = ModelPredictor(
        "student", lora.load_adapter(base.model, folder / "adapter"), base.tokenizer, dataset.info.prompt,
        dataset.info.max_input_chars, answer_limit(dataset.examples, base.tokenizer),
    )  # fmt: skip
    with progress_bar(quiet) as tell:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            tell("answers", done, len(examples), None)

        return student.predict(examples, count)


class ReviewSender:
    """Puts rows into the monitor's review queue, each once; opens the database when the first one is sent."""

    def __init__(self, url: str, route: str, run: Path) -> None:
        self.url, self.route, self.run = url, route, run
        self._store: Any = None

    def send(self, case: "Case") -> str:
        """The row's flag is in the queue; its id."""
        from monitoring.store import open_store

        if self._store is None:
            self._store = open_store(self.url)
        record = case.id.removesuffix("#balanced")
        flag = hashlib.sha256(f"{record}\0mistake".encode()).hexdigest()[:16]
        now = time.time()
        self._store.add_flags([{
            "id": flag, "record_id": record, "route": self.route, "kind": "mistake",
            "reason": f"the student of {self.run.name} is {'right' if case.student_right else 'wrong'} against the reference",
            "score": case.confidence, "status": "open", "at": now, "record_at": now, "adapter": self.run.name,
            "input_text": case.text, "teacher_text": case.teacher, "student_text": case.student,
        }])  # fmt: skip
        return flag


def _write(folder: Path, split: str, rows: "Sequence[Case]", found: "Sequence[Slice]") -> None:
    """All rows as CSV for a spreadsheet, slices as JSON."""
    with (folder / f"mistakes-{split}.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "class", "student_right", "teacher_right", "confidence", "gold", "teacher", "student", "text"])  # fmt: skip
        for c in rows:
            out.writerow([c.id, c.class_name, c.student_right, c.teacher_right, f"{c.confidence:.4f}", c.gold, c.teacher, c.student, c.text])  # fmt: skip
    (folder / f"slices-{split}.json").write_text(json.dumps([asdict(s) for s in found], indent=1))


def _browse(shown: "Sequence[Case]", traces: "dict[str, Trace]", queue: ReviewSender) -> None:
    from training.commands import out

    place = 0
    while 0 <= place < len(shown):
        case = shown[place]
        out.rule(f"{place + 1} of {len(shown)}")
        _print_case(case, traces.get(case.id))
        out.print(KEYS, style="dim")
        key = typer.getchar()
        if key == "q":
            return
        if key == "f":
            out.print(f"in the review queue as {queue.send(case)}")
            continue
        place = max(0, place - 1) if key == "p" else place + 1


def _print_case(case: "Case", trace: "Trace | None") -> None:
    from rich.table import Table
    from rich.text import Text

    from training.commands import out

    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_row(
        "row", Text(f"{case.id}  (class {case.class_name}, confidence {case.confidence:.2f})")
    )
    table.add_row("input", Text(case.text[:600]))
    table.add_row("gold", Text("–" if case.gold is None else case.gold))
    table.add_row("teacher", Text("–" if case.teacher is None else case.teacher))
    table.add_row("student", Text(case.student, style="green" if case.student_right else "red"))
    if trace:
        for n in trace.neighbours:
            mark = "  ← says otherwise" if n.conflicts else ""
            table.add_row(f"like {n.similarity:.2f}", Text(f"{n.label}  {n.text[:120]!r}{mark}"))
        table.add_row("so", Text(trace.verdict))
    out.print(table)


def _print_json(
    rows: "Sequence[Case]", shown: "Sequence[Case]", found: "Sequence[Slice]", flipped: "Flips | None",
    traces: "dict[str, Trace]", sent: Sequence[str],
) -> None:  # fmt: skip
    typer.echo(json.dumps({
        "rows": len(rows), "wrong": sum(not c.student_right for c in rows),
        "cases": [{**asdict(c), "trace": asdict(traces[c.id]) if c.id in traces else None} for c in shown],
        "slices": [asdict(s) for s in found], "flips": asdict(flipped) if flipped else None, "flags": list(sent),
    }))  # fmt: skip


def _print(
    rows: "Sequence[Case]", shown: "Sequence[Case]", limit: int, found: "Sequence[Slice]", flipped: "Flips | None",
    traces: "dict[str, Trace]", sent: Sequence[str], file: Path,
) -> None:  # fmt: skip
    from rich.table import Table

    from training.commands import out

    for case in shown[:limit]:
        _print_case(case, traces.get(case.id))
        out.rule(style="dim")
    wrong = sum(not c.student_right for c in rows)
    out.print(f"{wrong} of {len(rows)} wrong; {len(shown)} rows match, {min(limit, len(shown))} shown; all rows: {file}", highlight=False, soft_wrap=True)  # fmt: skip
    table = Table(
        "slice", "wrong in it", "wrong elsewhere", "p (Holm)", title="slices with more errors"
    )
    for s in found[:8]:
        table.add_row(
            s.name, f"{100 * s.errors.share:.0f} % of {s.errors.rows}", f"{100 * s.elsewhere.share:.0f} %",
            f"{s.p_value:.2g}", style="" if s.p_value < 0.05 else "dim",
        )  # fmt: skip
    out.print(table)
    if flipped:
        out.print(
            f"fixed {len(flipped.fixed)}, broken {len(flipped.broken)} (McNemar p = {flipped.p_value:.2g}); "
            f"broken: {', '.join(flipped.broken[:20]) or 'none'}", highlight=False, soft_wrap=True,
        )  # fmt: skip
    for name in sent:
        out.print(f"in the review queue as {name}", highlight=False)


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="mistakes")(mistakes)
