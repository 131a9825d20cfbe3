"""One fit of the study: an arm and a seed through one recipe, then scores of held-out rows and test sets.

A score is a number a row, above 0 for "yes" under the mix that the recipe aims at: the log-probability of the answer
"yes" less that of "no", which is what greedy decoding compares. No label is read here but those trained on.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from pydantic import BaseModel, ConfigDict, Field

from training import label_engine as engine
from training import lora
from training.config import FitConfig
from training.encode import Encoded, encode
from training.states import StateCache
from training.study_data import LABELS, ArmName, Comment, example, make_dataset
from training.train import Run, RunPaused


class Recipe(BaseModel):
    """What all arms and seeds share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fit: FitConfig = FitConfig()
    prompt: str = "Comment: {input}\nToxic (yes or no):"
    max_input_chars: int = Field(default=400, ge=16)
    validation_share: float = Field(default=0.15, gt=0, lt=0.5)
    most_validation: int = Field(default=500, ge=20)
    """Validation rows at most."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Where one fit's files are: its run, its scores."""

    folder: Path
    arm: ArmName
    seed: int

    @property
    def fitted(self) -> Path:
        """Written when training is over."""
        return self.folder / "fitted.json"

    def score_file(self, name: str) -> Path:
        """Where the scores of one set of rows are."""
        return self.folder / f"scores-{name}.json"

    def has(self, names: Sequence[str]) -> bool:
        """Whether all of these sets are scored."""
        return all(self.score_file(name).exists() for name in ("validation", *names))

    def scores(self, name: str) -> dict[str, float]:
        """Row id → score of one set of rows, {} when it has not been scored."""
        file = self.score_file(name)
        return (
            msgspec.json.decode(file.read_bytes(), type=dict[str, float]) if file.exists() else {}
        )


def run_fit(
    fit: Fit,
    recipe: Recipe,
    data: Path,
    base: Any,
    states: Path,
    sets: dict[str, list[Comment]],
    tell: Any = None,
    pause_at: float | None = None,
) -> None:
    """Train (or go on), then score validation rows and `sets`, a file each.

    Raises:
        RunPaused: the time was up; the same call goes on from there.
    """
    torch.set_num_threads(1)
    dataset = make_dataset(
        data, fit.folder.parent.parent / "datasets", fit.arm, fit.seed,
        prompt=recipe.prompt, max_input_chars=recipe.max_input_chars,
        validation_share=recipe.validation_share, most_validation=recipe.most_validation,
    )  # fmt: skip
    settings = recipe.fit.model_copy(update={"seed": fit.seed, "threads": 1})
    count = len(lora.decoder_of(base.model).layers)
    first = 0 if settings.lora.top_layers is None else max(0, count - settings.lora.top_layers)
    cache = StateCache(states / f"{base.digest}-{first}")
    run = Run(
        fit.folder / "run", settings, dataset, base.model, base.tokenizer, tell,
        states=cache, pause_at=pause_at,
    )  # fmt: skip
    result = run.fit()
    lora.restore_adapter(run.adapted, fit.folder / "run" / "adapter")
    line = {
        "rows": len(run.train), "validation_rows": len(run.validation), "cut_rows": result.cut_rows,
        "epochs": len(run.epochs), "best_epoch": result.best, "validation_loss": run.best.validation_loss,
        "train_seconds": sum(e.seconds for e in run.epochs),
    }  # fmt: skip
    fit.fitted.write_text(json.dumps(line))
    held = [
        encode(e, base.tokenizer, recipe.prompt, recipe.max_input_chars)
        for e in dataset.of("validation")
    ]
    wanted = {"validation": held}
    for name, rows in sets.items():
        wanted[name] = encode_all(rows, base.tokenizer, recipe)
    for name, encoded in wanted.items():
        if pause_at is not None and time.monotonic() >= pause_at:
            raise RunPaused
        if not fit.score_file(name).exists():
            _score_set(fit, run, name, encoded, base.tokenizer)


def _score_set(fit: Fit, run: Run, name: str, rows: list[Encoded], tokenizer: Any) -> None:
    found = score(run, rows, tokenizer)
    (fit.folder / f"mass-{name}.json").write_text(json.dumps(found.mass))
    scores = dict(zip((r.id for r in rows), found.scores, strict=True))
    fit.score_file(name).write_text(json.dumps(scores))


def encode_all(rows: Sequence[Comment], tokenizer: Any, recipe: Recipe) -> list[Encoded]:
    """Rows to be scored; the answer in them is a placeholder that no score depends on, so gold stays unread."""
    blind = [Comment(r.id, r.text, gold=LABELS[0], teacher=None, label=LABELS[0]) for r in rows]
    return [
        encode(example(r, "test"), tokenizer, recipe.prompt, recipe.max_input_chars) for r in blind
    ]


@dataclass(frozen=True, slots=True)
class Scored:
    """A score a row, and how much of the probability the label words have (mean and least)."""

    scores: list[float]
    mass: dict[str, float]


@torch.no_grad()
def score(run: Run, rows: list[Encoded], tokenizer: Any) -> Scored:
    """Log-odds of "yes" against "no" at the answer's first token, for each row in order."""
    words = [tokenizer.encode(label, add_special_tokens=False)[0] for label in LABELS]
    run.adapted.eval()
    with run.products():
        states = run.cache("scored rows", rows)
    # The rest in fp32, as it is served: a head in bf16 rounds log-odds to quarters.
    found = torch.zeros(len(rows))
    mass = torch.zeros(len(rows))
    first = engine.first_adapted_layer(run.adapted)
    with lora.upper_part(run.adapted, first) as decoder:
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), 32):
            chosen = order[start : start + 32]
            batch = engine.make_batch([rows[i] for i in chosen], [states[i] for i in chosen])
            logits = engine.answer_logits(run.adapted, decoder, batch)
            ends = torch.tensor([len(rows[i].completion_ids) for i in chosen]).cumsum(0)
            firsts = torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1]])
            log = torch.log_softmax(logits[firsts], dim=-1)[:, words]
            found[chosen] = log[:, 1] - log[:, 0]
            mass[chosen] = log.exp().sum(-1)
    return Scored(found.tolist(), {"mean": float(mass.mean()), "least": float(mass.min())})
