"""What a run's files must show before they go into the registry, and what goes there with them: lineage and model card.

The template must reach the server, and the adapter, loaded anew out of its files, must answer as the fitted one did and not as the
base model does. Lint is in `servers`, the evaluation's gates are in `gates`; `publish_run` asks them all.
"""

import datetime
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from router.policy import Route
from serving.base_model import BaseModel
from training import lora
from training.dataset import Dataset, DatasetInfo, Example
from training.encode import answer_limit
from training.errors import DataError
from training.gates import Conclusion, Gate, outcome
from training.predict import ModelPredictor, Progress
from training.servers import Server

RELOAD_RISK = 0.001
"""How rarely a right adapter may answer so many fewer rows exactly than training's best epoch did."""


def template_missing(
    policy: Path, info: DatasetInfo, route: Route | None, server: Server | None
) -> str | None:
    """What the policy would let LoRAX or vLLM serve wrongly about the template, in a sentence; None when nothing.

    Without `student.prompt` the router sends the chat as it is, and those servers lay the base model's chat template
    around it: prompts that the student never saw in training.
    """
    student = route.student if route is not None else None
    if server == "graduate" or student is None or student.prompt is not None or not info.prompt:
        return None
    cut = f" and max_input_chars: {info.max_input_chars}" if info.max_input_chars else ""
    return (
        f"{policy}: routes.{info.task}.student.prompt = null: the student was trained with a template, and LoRAX or vLLM would "
        f"serve it under the base model's chat template; set prompt: {json.dumps(info.prompt)}{cut}, or say --server "
        "graduate when nothing but Graduate's own server, which reads the template from the registry, serves it"
    )


@dataclass(frozen=True, slots=True)
class Reloaded:
    """Answers of the adapter loaded anew, beside the base model's and beside what training's best epoch gave."""

    rows: int
    same_as_base: int
    parseable: int
    exact: int
    """Answers that are the row's own, to the letter."""
    fitted_share: float | None = None
    """Share of exact answers of the best epoch, over all held-out rows; None where the run does not say."""

    def gates(self) -> list[Gate]:
        """Two lines: it does something, and it does what was fitted."""
        base = Gate(
            "reload check: not the base model", outcome(not self.rows or self.same_as_base < self.rows),
            f"{self.same_as_base} of {self.rows} answers equal the base model's"
            + (": the adapter does nothing" if self.rows and self.same_as_base == self.rows else ""),
            "fewer than all", "always",
        )  # fmt: skip
        if self.fitted_share is None:
            return [base]
        chance = at_most(self.exact, self.rows, self.fitted_share)
        figure = (
            f"{self.exact} of {self.rows} answers exact, training's best epoch had {100 * self.fitted_share:.1f} %"
            f" (so few or fewer by chance: {chance:.2g})"
        )
        limit = f"chance above {RELOAD_RISK}"
        return [
            base,
            Gate(
                "reload check: as fitted",
                outcome(chance > RELOAD_RISK),
                figure,
                limit,
                "always",
            ),
        ]


def at_most(successes: int, rows: int, share: float) -> float:
    """Probability of `successes` or fewer among `rows` draws that succeed with probability `share`."""
    return sum(
        math.comb(rows, k) * share**k * (1 - share) ** (rows - k) for k in range(successes + 1)
    )


def reload_check(
    dataset: Dataset,
    student: ModelPredictor,
    base_answers: Sequence[str],
    rows: int,
    fitted_share: float | None = None,
    tell: Progress | None = None,
) -> Reloaded:
    """Ask the reloaded student for some held-out rows; `tell` hears how many more are done."""
    from router.answer_spec import AnswerSpec
    from router.compare import parse

    spec = AnswerSpec.model_validate(dataset.info.answer)
    asked = held_out(dataset, rows)
    found = student.predict(asked, tell)
    return Reloaded(
        rows=len(found),
        same_as_base=sum(p.text == b for p, b in zip(found, base_answers, strict=True)),
        parseable=sum(parse(spec, p.text) is not None for p in found),
        exact=sum(p.text == e.completion.strip() for p, e in zip(found, asked, strict=True)),
        fitted_share=fitted_share,
    )


def fitted_share(run: Path) -> float | None:
    """Share of exact answers on held-out rows of the epoch that was kept; None where run.json does not say."""
    try:
        said = json.loads((run / "run.json").read_text())
        return float(said["epochs"][said["best"] - 1]["exact_share"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def held_out(dataset: Dataset, rows: int) -> list[Example]:
    """The rows that reload check and parity ask: the first of validation, which no figure is reported on."""
    return list(dataset.of("validation"))[:rows]


def reloaded(
    run: Path, base: BaseModel, dataset: Dataset, rows: int, tell: Progress | None = None
) -> tuple[ModelPredictor, list[str]]:
    """The student out of the run's files, and the base model's answers to the held-out rows without it.

    `tell` hears how many more of these there are.

    The base model is asked first: the adapter is laid on it and stays.
    """
    info = dataset.info
    limit = answer_limit(dataset.examples, base.tokenizer)
    settings = (base.tokenizer, info.prompt, info.max_input_chars, limit)
    plain = ModelPredictor("base", base.model, *settings).predict(held_out(dataset, rows), tell)
    adapted = lora.load_adapter(base.model, run / "adapter")
    return ModelPredictor("student", adapted, *settings), [p.text for p in plain]


@dataclass(frozen=True, slots=True)
class Sources:
    """What lineage and model card say beside the gates."""

    origin: dict[str, Any]
    terms: dict[str, Any]
    """`terms.record`."""
    parity: dict[str, Any] | None
    """What the running server gave; None when none was asked."""
    forced: str | None

    @property
    def precision(self) -> str:
        """In which the frozen weights were trained over."""
        return str(self.origin.get("precision", "not recorded"))


def lineage(
    run: Path, dataset: Dataset, conclusion: Conclusion, sources: Sources, teachers: Sequence[str]
) -> dict[str, Any]:
    """Where the adapter comes from, for `lineage.json`: enough to train it again and to check drift against its data.

    Raises:
        DataError: a file of the run is not there or was cut.
    """
    evaluation = run / "evaluation" / "evaluation.json"
    origin = sources.origin
    return {
        "schema": 2,
        "dataset": origin["dataset"],
        "dataset_digest": dataset.info.digest,
        "dataset_query": dataset.info.query,
        "teachers": list(teachers),
        "terms": sources.terms,
        "base_model": origin["base_model"],
        "base_model_digest": origin["base_model_digest"],
        "precision": sources.precision,
        "config": _file_of(run / "config.json"),
        "run": _file_of(run / "run.json"),
        "evaluation_sha256": hashlib.sha256(evaluation.read_bytes()).hexdigest(),
        "verdict": conclusion.verdict,
        "reasons": list(conclusion.reasons),
        "gates": [asdict(gate) for gate in conclusion.gates],
        "parity": sources.parity,
        "forced": sources.forced,
        "published_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _file_of(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as why:
        raise DataError(f"{path}: not what `train fit` wrote: {why}") from why


def model_card(
    task: str, dataset: Dataset, evaluation: dict[str, Any], conclusion: Conclusion, sources: Sources
) -> str:  # fmt: skip
    """README.md of the adapter."""
    origin = sources.origin
    lines = [
        f"# {task}", "",
        f"LoRA adapter for `{origin['base_model']}`, trained on {dataset.info.counts.get('train', 0)} answers of "
        f"{', '.join(dataset.info.teachers) or 'recorded answers'} (dataset `{dataset.info.digest}`), over "
        f"{sources.precision} weights.",
        "", f"Verdict: **{conclusion.verdict}** ({'; '.join(conclusion.reasons)}).", "",
    ]  # fmt: skip
    if sources.forced:
        lines += [f"Published all the same: {sources.forced}.", ""]
    lines += ["| gate | figure | limit | outcome |", "|---|---|---|---|"]
    lines += [f"| {g.name} | {g.figure} | {g.limit} | {g.state} |" for g in conclusion.gates]
    lines.append("")
    for test in evaluation["tests"]:
        lines += _test_table(test)
    lines += [f"- {sentence}" for sentence in evaluation["sentences"]]
    lines += [
        "", "The student sees this template, the input cut to "
        f"{dataset.info.max_input_chars or 'any number of'} characters:", "", "```", dataset.info.prompt, "```", "",
        *_terms(sources.terms),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _test_table(test: dict[str, Any]) -> list[str]:
    lines = [
        f"## {test['split']}: {test['rows']} rows, against {test['reference']}", "",
        "| answerer | right | 95 % interval | unparseable |", "|---|---|---|---|",
    ]  # fmt: skip
    for line in test["lines"]:
        right = line["figures"]["accuracy"]
        lines.append(
            f"| {line['name']} | {100 * right['share']:.1f} | {100 * right['low']:.1f}-{100 * right['high']:.1f} "
            f"| {line['figures']['unparseable']} |"
        )
    return [*lines, ""]


def _terms(terms: dict[str, Any]) -> list[str]:
    """The card's part about terms of service and licences."""
    lines = ["## Terms", ""]
    for one in terms["checked"]:
        noted = f" (noted {one['noted']}, {one['basis']})" if one["noted"] else ""
        lines.append(f"- {one['role']} `{one['model']}`: {one['class']}: {one['clause']}{noted}")
    signed = terms["accepted"]
    if signed:
        lines.append(f"- accepted by {signed['by']} at {signed['at']}: {signed['reason']}")
    return [*lines, "", f"This is {terms['notice']}."]


def load_evaluation(run: Path) -> dict[str, Any]:
    """The run's `evaluation.json`.

    Raises:
        DataError: it has not been evaluated.
    """
    file = run / "evaluation" / "evaluation.json"
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as why:
        raise DataError(f"{file}: {why}; run `graduate train evaluate --run {run}` first") from why
    if not isinstance(found, dict) or not isinstance(found.get("tests"), list):
        raise DataError(
            f"{file}: not what `graduate train evaluate` wrote: no 'tests'; run `graduate train evaluate --run {run}` again"
        )
    return found
