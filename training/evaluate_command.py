"""`graduate train evaluate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from training.dataset import Dataset
    from training.evaluate import Evaluation
    from training.predict import Predictor, Progress


def evaluate(
    run: Annotated[Path | None, typer.Option(help="Run folder; default: the newest one.")] = None,
    home: Annotated[Path, typer.Option(help="State folder.")] = Path(".graduate"),
    policy: Annotated[
        Path | None, typer.Option(help="Policy file, for the teacher's price.")
    ] = None,
    margin: Annotated[
        float,
        typer.Option(
            help="How much worse than the teacher still counts as not inferior.", min=0, max=1
        ),
    ] = 0.05,
    hand_over: Annotated[
        float | None,
        typer.Option(
            help="Plan the hybrid's cut to hand this share to the teacher (by validation); "
            "default: the least within one standard error of the best.",
            min=0,
            max=1,
        ),
    ] = None,
    zero_shot: Annotated[
        bool, typer.Option(help="Also score the base model without an adapter.")
    ] = True,
    few_shot: Annotated[
        int,
        typer.Option(help="Also score it with so many answered rows before the question.", min=0),
    ] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Score a run on its frozen test sets beside majority, TF-IDF, the base model and the teacher.

    Example: graduate train evaluate --run .graduate/runs/tickets-20261124-101500
    """
    from router.home import Home
    from training import evaluate as core
    from training import lora
    from training.commands import newest, open_base_model, operator_errors, progress_bar
    from training.dataset import Dataset
    from training.encode import answer_limit
    from training.predict import ModelPredictor

    place = Home(home)
    with operator_errors():
        folder = run or newest(place.runs, "*-*", "run")
        origin = open_origin(folder)
        dataset = Dataset.load(Path(origin["dataset"]))
        price = teacher_price(place, policy, dataset.info.task)
        base = open_base_model(origin["model"], place)
        longest = answer_limit(dataset.examples, base.tokenizer)
        asked = len(dataset.of("test")) * (1 + zero_shot + (few_shot > 0))
        with progress_bar(quiet=as_json) as tell:
            count = _counter(tell, asked + len(dataset.of("validation")))
            shown = [0] * zero_shot + [few_shot] * (few_shot > 0)
            others = _untrained(base, dataset, shown, longest, count)
            adapted = lora.load_adapter(base.model, folder / "adapter")
            info = dataset.info
            student = ModelPredictor(
                core.STUDENT, adapted, base.tokenizer, info.prompt, info.max_input_chars, longest
            )
            report = core.evaluate(
                dataset, student, others, margin=margin, price=price, progress=count,
                target_mix=target_mix(folder), hand_over=hand_over,
            )  # fmt: skip
        files = core.write(report, dataset, folder / "evaluation")
    if as_json:
        typer.echo((folder / "evaluation" / "evaluation.json").read_text())
        return
    show(report, {name: str(path) for name, path in files.items()})


def _counter(tell: "Callable[[str, int, int, float | None], None]", total: int) -> "Progress":
    """What turns "so many more" into a bar."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        tell("answers", min(done, total), total, None)

    return count


def _untrained(
    base: Any, dataset: "Dataset", shown: "Sequence[int]", longest: int, count: "Progress"
) -> "list[Predictor]":
    """What the base model gives without an adapter: its embeddings under a linear classifier, and its own answers.

    Args:
        shown: how many answered rows stand before the question, one entry an answerer; 0 is zero-shot.
    """
    from training import evaluate as core
    from training import few_shot, token_vectors
    from training.baselines import EMBEDDED, Baseline, fit_embedded, text_of
    from training.predict import ModelPredictor

    info, found = dataset.info, list[Any]()
    if info.answer.get("kind") in ("label", "json"):
        learned = [*dataset.of("train"), *dataset.of("validation")]
        table = base.model.get_input_embeddings().weight
        embed = token_vectors.embedder(table, base.tokenizer, [text_of(e) for e in learned])
        found.append(Baseline.fit(EMBEDDED, learned, info.answer, fit_embedded(embed)))
    for number in shown:
        name = f"base model, {number}-shot" if number else "base model, zero-shot"
        prompt = few_shot.template(
            info.prompt, info.max_input_chars, list(dataset.of("train")), number
        )
        plain = ModelPredictor(
            name, base.model, base.tokenizer, prompt, info.max_input_chars, longest
        )
        found.append(core.Fixed.of(plain, core.test_rows(dataset), count))
    return found


def open_origin(folder: Path) -> dict[str, Any]:
    """`origin.json` of a run: its dataset, base model and digests.

    Raises:
        DataError: the folder is not a finished run.
    """
    from training.errors import DataError

    try:
        found = json.loads((folder / "origin.json").read_text())
    except (OSError, ValueError) as why:
        raise DataError(f"{folder}: not a finished run: {why}") from why
    assert isinstance(found, dict)
    return found


def target_mix(folder: Path) -> dict[str, float] | None:
    """The class mix that a run was trained for; None when it declared none."""
    from training.config import FitConfig

    return FitConfig.model_validate_json((folder / "config.json").read_text()).target_mix


def teacher_price(place: Any, policy: Path | None, task: str) -> Any:
    """The price of the route's teacher; None without a policy."""
    from training.commands import open_route, policy_path

    path = policy_path(place, policy)
    if not path.exists():
        return None
    loaded, route = open_route(path, task)
    return loaded.backends[route.teacher.backend].price


def show(report: "Evaluation", files: dict[str, str]) -> None:
    """The tables, the sentences and where the pictures are."""
    from rich.table import Table

    from training.commands import out

    for test in report.tests:
        fields = list(test.lines[0].figures.fields)
        table = Table(
            "answerer", "right", "95 % interval", *fields, "unparseable", "as the teacher", "ms a row",
            title=f"{report.task}: {test.split}, {test.rows} rows, against {test.reference}",
        )  # fmt: skip
        for line in test.lines:
            whole = line.figures.accuracy
            table.add_row(
                line.name,
                f"{100 * whole.share:.1f}",
                f"{100 * whole.low:.1f}-{100 * whole.high:.1f}",
                *(f"{100 * line.figures.fields[name].accuracy.share:.1f}" for name in fields),
                str(line.figures.unparseable),
                "-" if line.against_teacher is None else f"{100 * line.against_teacher:.1f}",
                f"{1000 * line.seconds_per_row:.1f}",
            )
        out.print(table)
    for sentence in report.sentences:
        out.print(f"• {sentence}", highlight=False)
    for name, path in files.items():
        out.print(f"{name}: {path}", soft_wrap=True, highlight=False)


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="evaluate")(evaluate)
