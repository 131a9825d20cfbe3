"""The judge of `graduate train evaluate`: its flags checked before anything takes time, its verdicts laid on the report."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from router.answer_spec import AnswerSpec
from router.home import Home
from training.errors import ConfigError
from training.eval_judge import FORM
from training.eval_judge_run import (
    JudgeOptions,
    Labelled,
    judged,
    labels_of_file,
    labels_of_reviews,
    options_of,
)
from training.evaluate import Evaluation
from training.label_run import LabelRun

if TYPE_CHECKING:
    from training.evaluate_command import Opened

CONCURRENCY = 8
MIN_READABLE = 0.8
"""Share of the first 16 verdicts that must be readable before the rest is paid."""


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command was given."""

    models: tuple[str, ...]
    url: str | None
    rows: int
    rubric: Path | None
    labels: Path | None
    input_price: float | None
    output_price: float | None
    max_usd: float | None
    key_env: str
    yes: bool
    database: str
    as_json: bool


@dataclass(frozen=True, slots=True)
class Judging:
    """All that is needed to ask."""

    options: JudgeOptions
    spec: AnswerSpec
    labelled: dict[str, Labelled]
    others: tuple[tuple[str, str], ...]
    run: LabelRun

    def lay_on(self, report: Evaluation) -> Evaluation:
        """The report with the judges' verdicts on its first test set."""
        found = judged(
            report.tests[0], self.spec, self.options, self.labelled, self.others,
            lambda jobs: self.run.ask(jobs, (), FORM),
        )  # fmt: skip
        return replace(report, judges=found)


def prepared(flags: Flags, opened: "Opened", place: Home) -> Judging | None:
    """The judge, or None when none is asked for.

    Raises:
        ConfigError, DataError: flags or people's labels do not hold.
    """
    if not flags.models:
        given = {
            "--judge-url": flags.url, "--judge-labels": flags.labels, "--judge-rubric": flags.rubric,
            "--judge-max-usd": flags.max_usd,
        }  # fmt: skip
        stray = next((name for name, value in given.items() if value is not None), None)
        if stray:
            raise ConfigError(f"{stray} without --judge: allowed: with the model that judges")
        return None
    info = opened.dataset.info
    spec = AnswerSpec.model_validate(info.answer)
    if spec.kind not in ("text", "json"):
        raise ConfigError(
            f"--judge: answers of kind {spec.kind} are compared exactly; allowed: text, json"
        )
    prices = (flags.input_price, flags.output_price)
    options = options_of(flags.models, flags.url, prices, flags.rows, flags.rubric)
    if not flags.yes and any(prices) and not sys.stdin.isatty():
        raise ConfigError("nothing was asked: agree to the judge's cost with --yes")
    labelled: dict[str, Labelled] = {}
    if flags.labels is not None:
        labelled["labels"] = labels_of_file(flags.labels)
    if not flags.database.startswith("sqlite:///") or Path(flags.database[10:]).exists():
        labelled["reviews"] = labels_of_reviews(flags.database, info.task)
    elif (
        flags.database != place.database_url
    ):  # no queue yet is nothing wrong, a queue that was named and is not there is
        raise ConfigError(f"--database {flags.database}: there is no such file")
    others = [("teacher", name) for name in info.teachers if name]
    others.append(("student", str(opened.origin.get("base_model") or opened.origin["model"])))
    cache = place.root / "teacher-cache.db"
    run = LabelRun(
        cache, flags.key_env, CONCURRENCY, flags.max_usd, flags.yes, MIN_READABLE, flags.as_json
    )
    return Judging(options, spec, labelled, tuple(others), run)
