"""The study's plan: which fits, in which folders, as which jobs; and what one job does. Reads no test label."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from training import study_rival
from training.config import FitConfig, load_as, overlay, parse_assignments
from training.errors import ConfigError
from training.study_data import (
    ARMS,
    TESTS,
    ArmName,
    Comment,
    arm_rows,
    read_comments,
    test_rows,
    tuning_rows,
)
from training.study_fit import Fit, Recipe, run_fit

TUNING = "tuning"
RIVAL = "TF-IDF + logistic regression"


class JobSpec(BaseModel):
    """What one process of the study does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["student", "rival"]
    arm: ArmName
    seed: int
    data: str
    out: str
    model: str
    models: str
    recipe: Recipe
    sets: tuple[str, ...]
    """Names of the sets of rows to be scored: `tuning`, `balanced`, `indist`, or a file."""
    slice_seconds: float


@dataclass(frozen=True, slots=True)
class Place:
    """The study's folder."""

    out: Path

    def fit(self, arm: ArmName, seed: int, recipe: Recipe) -> Fit:
        """Where a fit of this recipe is; another recipe has another folder."""
        return Fit(self.out / "fits" / f"{arm}-{seed}-{digest_of(recipe)}", arm, seed)

    def rival(self, arm: ArmName) -> Fit:
        """Where an arm's TF-IDF scores are."""
        return Fit(self.out / "fits" / f"{arm}-tfidf", arm, 0)

    @property
    def states(self) -> Path:
        """Hidden states, shared by all fits."""
        return self.out / "states"


def digest_of(recipe: Recipe) -> str:
    """Eight hex digits that name a recipe."""
    return sha256(recipe.model_dump_json().encode()).hexdigest()[:8]


def set_name(name: str) -> str:
    """What files and rows call a set: a file's name without its ending, others as they are."""
    return name if name in (TUNING, *TESTS) else Path(name).stem


def rows_of(data: Path, name: str) -> list[Comment]:
    """The rows of a set to be scored.

    Raises:
        DataError: a file is missing or wrong.
    """
    if name == TUNING:
        return tuning_rows(data)
    return test_rows(data, name) if name in TESTS else read_comments(Path(name))


DEFAULT = Recipe(
    fit=FitConfig.model_validate(
        {
            "epochs": 2,
            "max_rows_seen": 5000,
            "batch_size": 8,
            "patience": 9,
            "average_share": 0.3,
            "optimizer": {"learning_rate": 1e-3},
            "target_mix": {"yes": 0.5, "no": 0.5},
        }
    )
)
"""The recipe for all arms; how it was chosen is in `docs/results/jigsaw-recipe.md`."""


def read_recipe(file: Path | None, assignments: Iterable[str]) -> Recipe:
    """The default recipe with a file's and single keys laid over it.

    Raises:
        ConfigError: with the file, the key, the value, and what is allowed.
    """
    below = DEFAULT.model_dump(mode="json")
    if file is not None:
        below = overlay(below, load_as(Recipe, file).model_dump(mode="json", exclude_unset=True))
    above = parse_assignments(assignments)
    load_as(Recipe, None, assignments)  # for its message, which names the key
    return Recipe.model_validate(overlay(below, above))


def wanted_arms(text: str) -> tuple[ArmName, ...]:
    """Arms by name, in the study's order.

    Raises:
        ConfigError: one that there is not.
    """
    names = {name.strip() for name in text.split(",")}
    unknown = sorted(names - set(ARMS))
    if unknown:
        raise ConfigError(f"--arms {text!r}: no arm {unknown[0]!r}; allowed: {', '.join(ARMS)}")
    return tuple(arm for arm in ARMS if arm in names)


def plan(arms: Iterable[ArmName], seeds: Sequence[int], make: JobSpec) -> list[JobSpec]:
    """One rival an arm, then one student an arm and seed; all arms' first seeds come before any second one.

    Args:
        make: the job to copy; its kind, arm and seed are replaced.
    """
    chosen = [arm for arm in ARMS if arm in set(arms)]
    jobs = [make.model_copy(update={"kind": "rival", "arm": arm, "seed": 0}) for arm in chosen]
    for seed in seeds:
        jobs += [
            make.model_copy(update={"kind": "student", "arm": arm, "seed": seed}) for arm in chosen
        ]
    return jobs


def fit_of(job: JobSpec) -> Fit:
    """Where a job's files are."""
    place = Place(Path(job.out))
    return place.rival(job.arm) if job.kind == "rival" else place.fit(job.arm, job.seed, job.recipe)


def run_job(job: JobSpec, base: Any, pause_at: float) -> None:
    """Do the job, or go on with it.

    Raises:
        RunPaused: the time was up.
    """
    data, fit = Path(job.data), fit_of(job)
    fit.folder.mkdir(parents=True, exist_ok=True)
    sets = {set_name(name): rows_of(data, name) for name in job.sets}
    if job.kind == "rival":
        study_rival.run(fit, arm_rows(data, job.arm), sets)
        return
    run_fit(fit, job.recipe, data, base, Place(Path(job.out)).states, sets, None, pause_at)
