"""`graduate train evaluate`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from router.home import Home
    from training.dataset import Dataset
    from training.eval_cost import Prices
    from training.eval_learned import Learned, Scorer
    from training.evaluate import Evaluation
    from training.predict import Predictor, Progress


def evaluate(
    run: Annotated[Path | None, typer.Option(help="Run folder; default: the newest one.")] = None,
    home: Annotated[Path, typer.Option(help="State folder.")] = Path(".graduate"),
    policy: Annotated[Path | None, typer.Option(help="Policy file, for prices of teacher and student.")] = None,
    margin: Annotated[float, typer.Option(help="How much worse than the teacher still counts as not inferior.", min=0, max=1)] = 0.05,
    hand_over: Annotated[float | None, typer.Option(help="Plan the hybrid's cut to hand this share to the teacher (by validation); default: the least within one standard error of the best.", min=0, max=1)] = None,
    zero_shot: Annotated[bool, typer.Option(help="Also score the base model without an adapter.")] = True,
    few_shot: Annotated[int, typer.Option(help="Also score it with so many answered rows before the question.", min=0)] = 3,
    bits_rows: Annotated[int, typer.Option(help="Test rows, spread over all, for bits per byte of student and base model; two passes a row.", min=0)] = 0,
    alone_rows: Annotated[int, typer.Option(help="Test rows asked one by one, to time what a caller waits for.", min=0)] = 0,
    learned_metric: Annotated[Path | None, typer.Option(help="Folder of a learned metric of free text (one output, such as a PyTorch port of BLEURT).")] = None,
    judge: Annotated[list[str] | None, typer.Option(help="Model that judges free text or JSON; again for a second judge.")] = None,
    judge_url: Annotated[str | None, typer.Option(help="Its OpenAI-style API, with /v1.")] = None,
    judge_rows: Annotated[int, typer.Option(help="Test rows, spread over all, that it judges.", min=1)] = 100,
    judge_rubric: Annotated[Path | None, typer.Option(help="Text file: what scores from 1 to 5 mean.")] = None,
    judge_labels: Annotated[Path | None, typer.Option(help="People's verdicts (JSON Lines: input, student, teacher, better, score), beside the review queue's.")] = None,
    judge_input_price: Annotated[float | None, typer.Option(min=0, help="US dollars a million prompt tokens.")] = None,
    judge_output_price: Annotated[float | None, typer.Option(min=0, help="US dollars a million completion tokens.")] = None,
    judge_max_usd: Annotated[float | None, typer.Option(min=0, help="Hard cap; default: the greatest cost shown.")] = None,
    judge_key_env: Annotated[str, typer.Option(help="Environment variable with the judge's key.")] = "OPENAI_API_KEY",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before paying the judge.")] = False,
    database: Annotated[str | None, typer.Option(help="URL of the review queue, for people's labels; default HOME/graduate.db.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:  # fmt: skip
    """Score a run on its frozen test sets, whole and by slices, beside majority, TF-IDF, the base model and the teacher.

    Example: graduate train evaluate --run .graduate/runs/tickets-20261124-101500
    """
    from router.home import Home
    from training import evaluate_files
    from training.commands import newest, operator_errors
    from training.evaluate_judging import Flags, prepared
    from training.evaluate_show import show
    from training.evaluate_words import in_words

    place = Home(home)
    flags = Flags(
        tuple(judge or ()), judge_url, judge_rows, judge_rubric, judge_labels, judge_input_price, judge_output_price,
        judge_max_usd, judge_key_env, yes, database or place.database_url, as_json,
    )  # fmt: skip
    with operator_errors():
        folder = run or newest(place.runs, "*-*", "run")
        opened = Opened.of(folder)
        judging = prepared(flags, opened, place)
        scorer = _scorer(learned_metric, opened.dataset)
        found = _scored(
            opened, place, policy, _Extent(margin, hand_over, zero_shot, few_shot, bits_rows, alone_rows), as_json
        )  # fmt: skip
        if scorer is not None:
            found = replace(found, learned=_learned(scorer, found, as_json))
        report = in_words(found)
        target = folder / "evaluation"
        files = evaluate_files.write(report, opened.dataset, target)
        if judging is not None:
            report = in_words(judging.lay_on(found))
            evaluate_files.write_report(report, target)
    if as_json:
        typer.echo(files["evaluation"].read_text())
        return
    show(report, {name: str(path) for name, path in files.items()})


@dataclass(frozen=True, slots=True)
class Opened:
    """A run with its dataset."""

    folder: Path
    origin: dict[str, Any]
    dataset: "Dataset"

    @classmethod
    def of(cls, folder: Path) -> "Opened":
        """Open both.

        Raises:
            DataError: the folder is not a finished run, or its dataset is not whole.
        """
        from training.dataset import Dataset

        origin = open_origin(folder)
        return cls(folder, origin, Dataset.load(Path(origin["dataset"])))


@dataclass(frozen=True, slots=True)
class _Extent:
    """How much is scored."""

    margin: float
    hand_over: float | None
    zero_shot: bool
    few_shot: int
    bits_rows: int
    alone_rows: int


def _scorer(folder: Path | None, dataset: "Dataset") -> "Scorer | None":
    """The learned metric.

    Raises:
        ConfigError: the answers are no text, or the folder holds no such model.
    """
    from training.errors import ConfigError
    from training.eval_learned import Scorer

    if folder is None:
        return None
    kind = dataset.info.answer.get("kind", "text")
    if kind != "text":
        raise ConfigError(f"--learned-metric: answers of kind {kind}; allowed: text")
    return Scorer.load(folder)


def _learned(scorer: "Scorer", report: "Evaluation", quiet: bool) -> "dict[str, Learned]":
    from training.commands import progress_bar
    from training.eval_learned import learned

    total = sum(len(test.lines) * test.rows for test in report.tests)
    with progress_bar(quiet) as tell:
        count = _counter(tell, total, scorer.name)
        return {
            test.split: learned(
                scorer,
                {line.name: [p.text for p in line.predictions] for line in test.lines},
                test.references,
                count,
            )
            for test in report.tests
        }


def _scored(
    opened: Opened, place: "Home", policy: Path | None, extent: _Extent, quiet: bool
) -> "Evaluation":
    """Everything that needs the model."""
    from training import eval_bits, eval_cost, lora
    from training import evaluate as core
    from training.commands import open_base_model, progress_bar
    from training.encode import answer_limit
    from training.predict import ModelPredictor

    dataset = opened.dataset
    info, test = dataset.info, core.test_rows(dataset)
    prices = prices_of(place, policy, info.task)
    base = open_base_model(opened.origin["model"], place)
    longest = answer_limit(dataset.examples, base.tokenizer)
    shown = [0] * extent.zero_shot + [extent.few_shot] * (extent.few_shot > 0)
    asked = len(test) * (1 + len(shown)) + len(dataset.of("validation"))
    counted = eval_bits.spread(test, extent.bits_rows)
    with progress_bar(quiet) as tell:
        count = _counter(tell, asked + 2 * len(counted))
        others = _untrained(base, dataset, shown, longest, count)
        adapted = lora.load_adapter(base.model, opened.folder / "adapter")
        student = ModelPredictor(
            core.STUDENT, adapted, base.tokenizer, info.prompt, info.max_input_chars, longest
        )
        report = core.evaluate(
            dataset, student, others, margin=extent.margin, price=prices.teacher, student_price=prices.student,
            progress=count, target_mix=target_mix(opened.folder), hand_over=extent.hand_over,
        )  # fmt: skip
        return replace(
            report,
            bits=eval_bits.measure(adapted, base.tokenizer, dataset, counted, count) if counted else None,
            waits=eval_cost.timed_alone(student, eval_bits.spread(test, extent.alone_rows)),
        )  # fmt: skip


def _counter(
    tell: "Callable[[str, int, int, float | None], None]", total: int, phase: str = "answers"
) -> "Progress":
    """What turns "so many more" into a bar."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        tell(phase, min(done, total), total, None)

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


def open_origin(folder: Path, *more: str) -> dict[str, Any]:
    """`origin.json` of a run: its dataset, base model and digests; `more` names what the caller needs beside the first two.

    Raises:
        DataError: the folder is not a finished run.
    """
    from training.errors import DataError

    try:
        found = json.loads((folder / "origin.json").read_text())
    except (OSError, ValueError) as why:
        raise DataError(f"{folder}: not a finished run: {why}") from why
    for key in ("dataset", "model", *more):
        if not isinstance(found, dict) or not isinstance(found.get(key), str):
            raise DataError(f"{folder / 'origin.json'}: not what `train fit` wrote: no {key!r}")
    return dict(found)


def target_mix(folder: Path) -> dict[str, float] | None:
    """The class mix that a run was trained for; None when it declared none.

    Raises:
        DataError: what the run was asked is not there, or no configuration.
    """
    from training.errors import DataError

    try:
        found = json.loads((folder / "config.json").read_text())
        mix = found.get("target_mix")
        return None if mix is None else {str(name): float(share) for name, share in mix.items()}
    except (OSError, ValueError, AttributeError, TypeError) as why:
        raise DataError(f"{folder / 'config.json'}: not what a run was asked: {why}") from why


def prices_of(place: "Home", policy: Path | None, task: str) -> "Prices":
    """What the route's backends cost; None for one that the policy gives no price, and for both without a policy.

    A backend without a price is not a free one: what it costs is not known.
    """
    from training.commands import open_route, policy_path
    from training.eval_cost import Prices

    path = policy_path(place, policy)
    if not path.exists():
        return Prices()
    loaded, route = open_route(path, task)
    names = (route.teacher.backend, route.student.backend if route.student else None)
    found = [loaded.backends[name] if name is not None else None for name in names]
    return Prices(
        *(b.price if b is not None and "price" in b.model_fields_set else None for b in found)
    )


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(name="evaluate")(evaluate)
