"""Teachers compared on gold: model x prompt x temperature, with intervals, cost and latency; and one teacher's ceiling by slice.

A student learns what its teacher says, so the teacher's rate against gold bounds the student's from above, on average.
Reads the grid's file; asks nobody.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml
from pydantic import Field, ValidationError, model_validator

from monitoring.intervals import wilson
from router.answer_spec import AnswerSpec, Regex, Strict, Template, at_key
from router.policy import Price
from router.prompt import last_user_text
from training.build import Row
from training.curate.gold import agree
from training.curate.votes import value_of
from training.dataset import class_of
from training.encode import canonical
from training.errors import ConfigError
from training.label import Job, Teacher, cost_of, problem
from training.label_cache import Reply
from training.language import language_of
from training.statistics import mcnemar

ALPHA = 0.05


class GridModel(Strict):
    """One model and its price."""

    name: str = Field(min_length=1)
    """As the API calls it."""
    url: str | None = None
    """Its API; the command's --teacher-url unless given."""
    input_price: float = Field(ge=0)
    """US dollars a million prompt tokens."""
    output_price: float = Field(ge=0)
    """US dollars a million completion tokens."""


class GridPrompt(Strict):
    """One way to ask."""

    user: Template = "{input}"
    """The user message."""
    system: str | None = None
    """The system message; the row's own unless given."""
    extract: Regex | None = None
    """Where the answer is in the reply, such as the last JSON object after a chain of thought."""


class GridConfig(Strict):
    """What is compared: every model with every prompt at every temperature."""

    models: tuple[GridModel, ...] = Field(min_length=1)
    prompts: dict[str, GridPrompt] = Field(min_length=1)
    temperatures: tuple[float, ...] = (0.0,)
    """0 to 2."""
    repeats: int = Field(default=1, ge=1, le=20)
    """Times that each setting above temperature 0 is asked; a setting at 0 is asked once."""
    max_tokens: int = Field(default=256, ge=1)
    """Most tokens of an answer."""

    @model_validator(mode="after")
    def _holds(self) -> "GridConfig":
        wrong = next((t for t in self.temperatures if not 0 <= t <= 2), None)
        if wrong is not None or not self.temperatures:
            raise at_key("temperatures", f"{wrong}: allowed: one or more numbers from 0 to 2")
        return self


def load(path: Path) -> GridConfig:
    """The grid of a file.

    Raises:
        ConfigError: with the file, the key, the value and what is allowed.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as why:
        raise ConfigError(f"{path}: {why}") from why
    if isinstance(data, dict) and isinstance(data.get("prompts"), dict):
        prompts = data["prompts"].items()
        data["prompts"] = {name: {"user": p} if isinstance(p, str) else p for name, p in prompts}
    try:
        return GridConfig.model_validate(data)
    except ValidationError as why:
        problems = [
            f"{path}: {'.'.join(str(p) for p in e['loc'])} = {e['input']!r:.80}: {e['msg']}"
            for e in why.errors()
        ]
        raise ConfigError("\n".join(problems)) from why


def teachers_of(config: GridConfig, url: str) -> dict[str, Teacher]:
    """Every setting under its name, `model / prompt / T=temperature`."""
    found = {}
    for model in config.models:
        for name, prompt in config.prompts.items():
            for temperature in config.temperatures:
                found[f"{model.name} / {name} / T={temperature:g}"] = Teacher(
                    model.url or url, model.name, Price(input=model.input_price, output=model.output_price),
                    prompt.system, prompt.user, temperature, config.max_tokens, {}, prompt.extract,
                )  # fmt: skip
    return found


@dataclass(frozen=True, slots=True)
class Setting:
    """One cell of the grid. Shares are 0-1, costs US dollars, latencies seconds."""

    name: str
    rows: int
    right: float
    accuracy: float
    low: float
    high: float
    unparseable: int
    failed: int
    recall: dict[str, float]
    """Share right of each gold class: of two classes these are the true-positive and true-negative rates."""
    stable_share: float | None
    """Rows whose repeats all give the same answer; None when asked once."""
    repeat_spread: float | None
    """Standard deviation of the accuracy between repeats."""
    usd: float
    usd_per_1000: float
    p50_seconds: float
    p95_seconds: float
    is_right: tuple[bool, ...]
    """Row by row, first repeat; a row without an answer is wrong."""


def score(
    name: str,
    rows: Sequence[Row],
    answers: Sequence[tuple[Job, Reply]],
    repeats: int,
    spec: AnswerSpec,
) -> Setting:
    """One setting against gold. The interval is Wilson's over rows: repeats of a row are no new rows."""
    form = spec.model_dump(mode="json", by_alias=True)
    said: dict[tuple[int, int], tuple[Job, Reply]] = {(j.row, j.sample): (j, r) for j, r in answers}
    right = np.zeros((repeats, len(rows)), dtype=bool)
    values: list[set[str | None]] = [set() for _ in rows]
    bad = 0
    for (number, sample), (job, reply) in said.items():
        text = job.teacher.answer(reply)
        right[sample, number] = agree(spec, text, rows[number].gold or "")
        values[number].add(value_of(spec, text))
        bad += problem(spec, text, reply.finish_reason, job.body.get("tools") or ()) is not None
    by_class: dict[str, list[float]] = {}
    for number, row in enumerate(rows):
        label = class_of(canonical(row.gold or "", form), form)
        if label is not None:
            by_class.setdefault(label, []).append(float(right[:, number].mean()))
    mean = float(right.mean())
    low, high = wilson(round(mean * len(rows)), len(rows))
    usd = sum(cost_of(job, reply) for job, reply in answers)
    latencies = [reply.latency_seconds for _, reply in answers] or [0.0]
    return Setting(
        name, len(rows), round(mean * len(rows), 2), mean, low, high, bad, repeats * len(rows) - len(said),
        {label: float(np.mean(found)) for label, found in sorted(by_class.items())},
        None if repeats == 1 else sum(len(v) == 1 for v in values) / len(rows),
        None if repeats == 1 else float(right.mean(axis=1).std(ddof=1)),
        usd, 1000 * usd / max(1, len(answers)), float(np.quantile(latencies, 0.5)),
        float(np.quantile(latencies, 0.95)), tuple(bool(x) for x in right[0]),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which setting is best, which cannot be told from it, and which of those to take."""

    best: str
    tied: dict[str, float]
    """Settings with their exact McNemar p against the best, where it is at least 0.05 (not corrected)."""
    chosen: str
    why: str


def judge(settings: Sequence[Setting]) -> Verdict:
    """The cheapest of the settings that the rows cannot tell from the best."""
    best = max(settings, key=lambda s: (s.accuracy, -s.usd_per_1000))
    tied = {
        s.name: p
        for s in settings
        if s is not best and (p := mcnemar(best.is_right, s.is_right)) >= ALPHA
    }
    level = [s for s in settings if s is best or s.name in tied]
    chosen = min(level, key=lambda s: (s.usd_per_1000, -s.accuracy))
    why = (
        "best and cheapest of those that cannot be told apart"
        if chosen is best
        else f"not told from the best ({best.name}) by {best.rows} rows (p {tied[chosen.name]:.2f}), and cheaper"
    )
    return Verdict(best.name, tied, chosen.name, why)


def teacher_config(teacher: Teacher, setting: Setting) -> dict[str, Any]:
    """The chosen teacher as a versioned file: how it is asked, and what it reached on gold."""
    asked = {
        "url": teacher.url, "model": teacher.model, "system": teacher.system, "prompt": teacher.prompt,
        "temperature": teacher.temperature, "max_tokens": teacher.max_tokens, "extract": teacher.extract,
        "price": {"input": teacher.price.input, "output": teacher.price.output},
    }  # fmt: skip
    digest = hashlib.sha256(msgspec.json.encode(asked, order="deterministic")).hexdigest()[:16]
    gold = {
        "rows": setting.rows,
        "accuracy": setting.accuracy,
        "interval": [setting.low, setting.high],
    }
    return {"schema": 1, "digest": digest, **asked, "gold": gold}


# The ceiling

SLICES: Mapping[str, Callable[[str, str], str]] = {
    "class": lambda text, label: label,
    "length": lambda text, label: next((n for most, n in ((80, "to 80 characters"), (320, "81-320")) if len(text) <= most), "over 320"),
    "language": lambda text, label: language_of(text)[0] or "unknown",
}  # fmt: skip
"""Slice → which part of it a row is in, by input and gold class."""


def ceiling(pairs: Sequence[tuple[Row, str]], spec: AnswerSpec) -> list[dict[str, Any]]:
    """The teacher's rate against gold, over all and by slice: what a student taught by it can hope for.

    Args:
        pairs: rows with gold and the teacher's answer.
    """
    form = spec.model_dump(mode="json", by_alias=True)
    counted: dict[tuple[str, str], list[int]] = {}
    for row, answer in pairs:
        if row.gold is None:
            continue
        is_right = agree(spec, answer, row.gold)
        text, label = last_user_text(row.messages), class_of(canonical(row.gold, form), form) or "-"
        parts = [("all", "all"), *((name, part(text, label)) for name, part in SLICES.items())]
        for key in parts:
            found = counted.setdefault(key, [0, 0])
            found[0], found[1] = found[0] + is_right, found[1] + 1
    report = []
    for (name, part), (right, rows) in sorted(
        counted.items(), key=lambda c: (c[0][0] != "all", c[0])
    ):
        low, high = wilson(right, rows)
        report.append(
            {
                "slice": name,
                "part": part,
                "rows": rows,
                "right": right,
                "accuracy": right / rows,
                "interval": [low, high],
            }
        )
    return report


def draw(settings: Sequence[Setting], verdict: Verdict, path: Path) -> None:
    """Accuracy with its interval against cost, the chosen setting marked."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), dpi=130, layout="constrained")
    for s in settings:
        color = "#b45309" if s.name == verdict.chosen else "#1d4ed8"
        errors = [[max(0.0, s.accuracy - s.low)], [max(0.0, s.high - s.accuracy)]]
        axes.errorbar([s.usd_per_1000], [s.accuracy], yerr=errors, fmt="o", color=color, capsize=3)
        axes.annotate(
            s.name,
            (s.usd_per_1000, s.accuracy),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=7,
        )
    axes.set(xlabel="US dollars per 1,000 answers", ylabel="right against gold (Wilson 95 %)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.savefig(path)
    plt.close(figure)


def write(
    settings: Sequence[Setting], verdict: Verdict, teachers: Mapping[str, Teacher], folder: Path
) -> dict[str, Any]:
    """`grid.json`, `teacher.json` and `grid.png`; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = next(s for s in settings if s.name == verdict.chosen)
    cells = []
    for setting in settings:
        cell = {name: getattr(setting, name) for name in Setting.__slots__ if name != "is_right"}
        cells.append(cell)
    report = {
        "settings": cells, "best": verdict.best, "tied": verdict.tied, "chosen": verdict.chosen, "why": verdict.why,
    }  # fmt: skip
    (folder / "grid.json").write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    found = teacher_config(teachers[verdict.chosen], chosen)
    (folder / "teacher.json").write_text(json.dumps(found, ensure_ascii=False, indent=2) + "\n")
    draw(settings, verdict, folder / "grid.png")
    return report
