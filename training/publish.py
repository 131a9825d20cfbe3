"""From a run to a version in the registry: lint, parity, gates, lineage, model card. Or a reasoned no.

The lint refuses what LoRAX or vLLM would serve wrongly without a word; parity loads the adapter anew and asks for the
same answers; the gates read the run's evaluation. `graduate train publish` says `publish`, `hybrid only` or `do not
graduate`, and why.
"""

import datetime
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from router.policy import Route
from serving.base_model import BaseModel
from training import lora
from training.dataset import Dataset, DatasetInfo
from training.encode import answer_limit
from training.errors import DataError, PublishRefused
from training.predict import ModelPredictor

NO_TERMS = (
    "not checked; whether a teacher's answers may train another model is decided by them (record what they say by "
    "`graduate train publish --terms TEXT`)"
)
MAX_RANK = 64
"""LoRAX compiles its kernels for ranks up to 64; vLLM takes more when told so."""


def lint(adapter: Path, num_layers: int) -> list[str]:
    """What LoRAX or vLLM would silently serve wrongly, each in a sentence; [] when nothing is wrong.

    Sources: LoRAX's adapter loader (no rsLoRA or DoRA scale, a module type must be in every layer, no
    modules_to_save), vLLM's LoRA config checks.
    """
    try:
        config = json.loads((adapter / "adapter_config.json").read_text())
    except (OSError, ValueError) as why:
        return [f"adapter_config.json cannot be read: {why}"]
    wrong = [
        f"{key} is set: LoRAX ignores it and would serve other weights"
        for key in (
            "use_rslora",
            "use_dora",
            "rank_pattern",
            "alpha_pattern",
            "modules_to_save",
            "layers_to_transform",
        )
        if config.get(key)
    ]
    if config.get("bias", "none") != "none":
        wrong.append(
            f"bias = {config['bias']!r}: neither LoRAX nor vLLM serves LoRA biases; allowed: none"
        )
    if config.get("r", 0) > MAX_RANK:
        wrong.append(f"rank {config['r']}: LoRAX serves ranks up to {MAX_RANK}")
    if list(adapter.glob("*.bin")) or list(adapter.glob("*.pt")):
        wrong.append("pickled weights: only safetensors are served")
    weights = adapter / "adapter_model.safetensors"
    if not weights.exists():
        return [*wrong, "adapter_model.safetensors is missing"]
    with safe_open(weights, framework="pt") as tensors:
        names = set(tensors.keys())
    for module in config.get("target_modules", ()):
        layers = {
            int(name.split(".layers.")[1].split(".")[0])
            for name in names
            if f".{module}.lora_A" in name and ".layers." in name
        }
        if layers != set(range(num_layers)):
            missing = sorted(set(range(num_layers)) - layers)
            wrong.append(
                f"{module} has no weights in layers {missing}: LoRAX would skip {module} everywhere"
            )
    return wrong


Server = Literal["lorax", "vllm", "graduate"]
"""What serves the students. Only `graduate` reads an adapter's template from the registry."""


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
class Parity:
    """Answers of the adapter loaded anew, beside the base model's."""

    rows: int
    same_as_base: int
    parseable: int


def parity(
    dataset: Dataset, student: ModelPredictor, base_answers: Sequence[str], rows: int
) -> Parity:
    """Ask the reloaded student for some held-out rows; it must not answer as the base model does."""
    from router.answer_spec import AnswerSpec
    from router.compare import parse

    spec = AnswerSpec.model_validate(dataset.info.answer)
    found = student.predict(held_out(dataset, rows))
    same = sum(p.text == b for p, b in zip(found, base_answers, strict=True))
    return Parity(len(found), same, sum(parse(spec, p.text) is not None for p in found))


def held_out(dataset: Dataset, rows: int) -> list[Any]:
    """The rows that parity asks: the first of validation, which no figure is reported on."""
    return list(dataset.of("validation"))[:rows]


def reloaded(
    run: Path, base: BaseModel, dataset: Dataset, rows: int
) -> tuple[ModelPredictor, list[str]]:
    """The student out of the run's files, and the base model's answers to the held-out rows without it.

    The base model is asked first: the adapter is laid on it and stays.
    """
    info = dataset.info
    limit = answer_limit(dataset.examples, base.tokenizer)
    settings = (base.tokenizer, info.prompt, info.max_input_chars, limit)
    plain = ModelPredictor("base", base.model, *settings).predict(held_out(dataset, rows))
    adapted = lora.load_adapter(base.model, run / "adapter")
    return ModelPredictor("student", adapted, *settings), [p.text for p in plain]


Verdict = Literal["publish", "hybrid only", "do not graduate"]


@dataclass(frozen=True, slots=True)
class Gate:
    """What the evaluation allows, and why."""

    verdict: Verdict
    reasons: tuple[str, ...]


def gate(evaluation: dict[str, Any]) -> Gate:
    """Read the run's evaluation.

    `publish`: on every test set the student is shown to be non-inferior to the teacher. `hybrid only`: it is not, but
    student and teacher together are at least as good as the teacher at fewer of its calls. Else `do not graduate`.
    Without gold labels there is no teacher to compare with: agreement of at least half is asked for.
    """
    reasons = []
    tests = evaluation["tests"]
    if all(t["non_inferior"] for t in tests if t["non_inferior"] is not None) and any(
        t["non_inferior"] is not None for t in tests
    ):
        return Gate("publish", ("not inferior to the teacher on every test set",))
    main = tests[0]
    student = next(line for line in main["lines"] if line["name"] == "student")
    share = student["figures"]["accuracy"]["share"]
    gap = main["student_against_teacher"]
    if gap is None:
        reasons.append(
            f"no gold labels: agrees with the teacher on {100 * share:.1f} % of test rows"
        )
        return Gate("hybrid only" if share >= 0.5 else "do not graduate", tuple(reasons))
    reasons.append(
        f"not shown to be non-inferior at {100 * main['margin']:.0f} points: {100 * gap['difference']:+.1f} "
        f"[{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]"
    )
    together = main["hybrid"]
    if together and together["handed_over"] < 1:
        right, teacher = together["accuracy"], together["teacher_alone"]
        reasons.append(
            f"with the teacher on {100 * together['handed_over']:.0f} % of requests: {100 * right['share']:.1f}, "
            f"teacher alone {100 * teacher['share']:.1f}"
        )
        if right["high"] >= teacher["share"]:
            return Gate("hybrid only", tuple(reasons))
    return Gate("do not graduate", tuple(reasons))


def lineage(
    run: Path,
    origin: dict[str, Any],
    dataset: Dataset,
    verdict: Gate,
    *,
    forced: str | None,
    terms: str | None,
) -> dict[str, Any]:
    """Where the adapter comes from, for `lineage.json`: enough to train it again and to check drift against its data.

    Args:
        terms: what somebody found in the teachers' terms of service; None when nobody has said.
    """
    evaluation = run / "evaluation" / "evaluation.json"
    return {
        "schema": 1,
        "dataset": origin["dataset"],
        "dataset_digest": dataset.info.digest,
        "dataset_query": dataset.info.query,
        "teachers": list(dataset.info.teachers),
        "teacher_terms": terms,
        "base_model": origin["base_model"],
        "base_model_digest": origin["base_model_digest"],
        "config": json.loads((run / "config.json").read_text()),
        "run": json.loads((run / "run.json").read_text()),
        "evaluation_sha256": hashlib.sha256(evaluation.read_bytes()).hexdigest(),
        "verdict": verdict.verdict,
        "reasons": list(verdict.reasons),
        "forced": forced,
        "published_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def model_card(
    task: str, dataset: Dataset, origin: dict[str, Any], evaluation: dict[str, Any], verdict: Gate,
    terms: str | None = None,
) -> str:  # fmt: skip
    """README.md of the adapter."""
    lines = [
        f"# {task}", "",
        f"LoRA adapter for `{origin['base_model']}`, trained on {dataset.info.counts.get('train', 0)} answers of "
        f"{', '.join(dataset.info.teachers) or 'recorded answers'} (dataset `{dataset.info.digest}`).",
        "", f"Verdict: **{verdict.verdict}** ({'; '.join(verdict.reasons)}).", "",
    ]  # fmt: skip
    for test in evaluation["tests"]:
        lines += [
            f"## {test['split']}: {test['rows']} rows, against {test['reference']}", "",
            "| answerer | right | 95 % interval | unparseable |", "|---|---|---|---|",
        ]  # fmt: skip
        for line in test["lines"]:
            right = line["figures"]["accuracy"]
            lines.append(
                f"| {line['name']} | {100 * right['share']:.1f} | {100 * right['low']:.1f}-{100 * right['high']:.1f} "
                f"| {line['figures']['unparseable']} |"
            )
        lines.append("")
    lines += [f"- {sentence}" for sentence in evaluation["sentences"]]
    lines += [
        "", "The student sees this template, the input cut to "
        f"{dataset.info.max_input_chars or 'any number of'} characters:", "", "```", dataset.info.prompt, "```", "",
        f"Teacher's terms of service: {terms or NO_TERMS}.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


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
    assert isinstance(found, dict)
    return found


def enforce(wrong: Sequence[str], checked: Parity, verdict: Gate, forced: str | None) -> None:
    """Nothing, when the adapter may be published. A hybrid-only student may: the policy decides its mode.

    Raises:
        PublishRefused: with every reason. Lint and parity cannot be forced.
    """
    if wrong:
        raise PublishRefused("serving lint: " + "; ".join(wrong))
    if checked.rows and checked.same_as_base == checked.rows:
        raise PublishRefused(
            f"parity: all {checked.rows} answers equal the base model's: the adapter does nothing"
        )
    if verdict.verdict == "do not graduate" and not forced:
        raise PublishRefused(
            "do not graduate: "
            + "; ".join(verdict.reasons)
            + "; --force REASON publishes all the same"
        )
