"""An experiment: one baseline and runs that each differ from it in one thing, the sizes of an ablation, a ladder of models.

Decides which runs there are. It refuses a run that differs in two things: its effect could be either's. What a run gives
is measured on validation rows only; test sets stay unread.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.config import FitConfig, load_as, overlay
from training.errors import ConfigError

Budget = Literal["epochs", "steps"]
NOT_A_CHANGE = ("seed", "threads")
LEAST_SEEDS = 3
"""Seeds of each size of an ablation at least: a law's intervals need them."""


class Sizes(BaseModel):
    """The data-size ablation: nested shares of the training rows, everything else as in the baseline."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shares: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
    """Shares of the training rows, each in (0, 1]."""
    budgets: tuple[Budget, ...] = ("epochs",)
    """`epochs`: as many passes at each size; `steps`: about as many steps, so small sizes see their rows more often."""
    worth_points: float = Field(default=1.0, gt=0)
    """Points of accuracy that doubling the rows must bring to be worth it."""
    usd_per_row: float | None = Field(default=None, ge=0)
    """What labelling one more row costs."""
    usd_per_hour: float | None = Field(default=None, ge=0)
    """What the machine costs that trains, for the same run on more rows."""


class Ladder(BaseModel):
    """Base models of growing size under the baseline's configuration, data and seeds; `training/ladder.py` has the stop rule."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[str, ...] = Field(min_length=2)
    """Folders, GGUF files or hub ids, the smallest first."""
    worth_points: float = Field(default=0.0, ge=0)
    """Points of accuracy that a larger model must bring, beside being beyond noise."""
    timed_rows: int = Field(default=16, ge=0)
    """Validation rows that are answered one at a time, for the latency."""
    usd_per_hour: float | None = Field(default=None, ge=0)
    """What this machine costs, for dollars beside the figures."""
    climb_all: bool = False
    """Run every rung, also above the one at which the rule stops."""


class Experiment(BaseModel):
    """The file of `graduate train experiment`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """What its folder is called."""
    dataset: str | None = None
    """Dataset folder; default: the newest in the home."""
    model: str = "smollm2"
    """Base model of all runs but the ladder's; where it is not given, a ladder's lowest rung."""
    seeds: int = Field(default=3, ge=1, le=50)
    """Seeds a run; the baseline's give the noise floor."""
    baseline: dict[str, Any] = {}
    """The run file that all others are compared with; keys of `graduate train fit`."""
    vary: dict[str, list[Any]] = {}
    """Key → values: a run each, with only that key changed."""
    runs: tuple[dict[str, Any], ...] = ()
    """Whole runs, written out as keys that are laid over the baseline; one that differs in two is refused."""
    sizes: Sizes | None = None
    """Also run the data-size ablation."""
    ladder: Ladder | None = None
    """Also climb a ladder of base models."""

    @property
    def base(self) -> str:
        """The base model of the baseline."""
        if self.ladder is not None and "model" not in self.model_fields_set:
            return self.ladder.models[0]
        return self.model


@dataclass(frozen=True, slots=True)
class Planned:
    """One run of the experiment: what is changed, and its whole configuration."""

    name: str
    change: str
    """`KEY = VALUE`, "" for the baseline, `rows …` for a size."""
    config: FitConfig
    seed: int
    share: float = 1.0
    budget: Budget | None = None
    """Set for runs of the ablation."""
    model: str | None = None
    """Set for runs of the ladder; None is the experiment's."""

    @property
    def group(self) -> str:
        """Runs that differ in the seed alone share it."""
        return self.name.rpartition("-s")[0]


def load(file: Path, assignments: Sequence[str] = ()) -> Experiment:
    """The experiment of a YAML file.

    Raises:
        ConfigError: with the file, the key, the value and what is allowed.
    """
    found = load_as(Experiment, file, assignments)
    for share in found.sizes.shares if found.sizes else ():
        if not 0 < share <= 1:
            raise ConfigError(f"{file}: sizes.shares = {share!r}: allowed: above 0, at most 1")
    models = found.ladder.models if found.ladder else ()
    for model in models:
        if models.count(model) > 1:
            raise ConfigError(
                f"{file}: ladder.models: {model!r} is there twice: allowed: once each"
            )
    return found


def flat(config: FitConfig) -> dict[str, Any]:
    """Every key of a run file with its value: `lora.rank` → 16; `explanations`, which may be None, is one key."""

    def walk(model: BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
        for name in type(model).model_fields:
            value = getattr(model, name)
            if isinstance(value, BaseModel) and name != "explanations":
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    return dict(walk(config, ""))


def differences(one: FitConfig, other: FitConfig) -> dict[str, Any]:
    """Keys in which `other` differs from `one`, with its values; the seed is not one of them."""
    mine = flat(one)
    return {
        key: value
        for key, value in flat(other).items()
        if mine[key] != value and key not in NOT_A_CHANGE
    }


def _config(file: str, below: dict[str, Any], above: dict[str, Any]) -> FitConfig:
    try:
        return FitConfig.model_validate(overlay(below, above))
    except ValidationError as why:
        first = why.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{file}: {key} = {first['input']!r}: {first['msg']}") from why


def _nested(changes: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings; mappings stay."""
    made: dict[str, Any] = {}
    for key, value in changes.items():
        one: Any = value
        for part in reversed(key.split(".")):
            one = {part: one}
        made = overlay(made, one)
    return made


def plan(experiment: Experiment, file: str = "experiment") -> list[Planned]:
    """All runs, baseline first, each seed apart.

    Raises:
        ConfigError: a run differs from the baseline in two things or in none, or a key or value is wrong.
    """
    below = _nested(experiment.baseline)
    base = _config(f"{file}: baseline", {}, below)
    chosen: dict[str, FitConfig] = {"": base}
    changes = [
        (f"vary.{key}", {key: value}) for key, values in experiment.vary.items() for value in values
    ]
    changes += [(f"runs[{i}]", run) for i, run in enumerate(experiment.runs)]
    for place, change in changes:
        config = _config(f"{file}: {place}", below, _nested(change))
        found = differences(base, config)
        if len(found) > 1:
            raise ConfigError(
                f"{file}: {place} differs from the baseline in {len(found)} things ({', '.join(sorted(found))}): "
                "allowed: one; its effect could be either's"
            )
        if not found:
            raise ConfigError(f"{file}: {place} = {change!r} is the baseline itself")
        ((key, value),) = found.items()
        chosen[f"{key} = {value}"] = config
    planned = [
        Planned(_named(change, seed), change, config.model_copy(update={"seed": seed}), seed)
        for change, config in chosen.items()
        for seed in range(experiment.seeds)
    ]
    planned += _sizes(experiment, base) if experiment.sizes else []
    return planned + _rungs(experiment, base)


def _named(change: str, seed: int) -> str:
    text = "".join(c if c.isalnum() else "-" for c in change).strip("-") or "baseline"
    if len(text) > 50:
        text = f"{text[:40]}-{sha256(change.encode()).hexdigest()[:8]}"
    return f"{text}-s{seed}"


def is_whole_the_baseline(experiment: Experiment) -> bool:
    """Whether the ablation's runs on all rows would be the baseline's over again, so that those stand for them."""
    base = FitConfig.model_validate(_nested(experiment.baseline))
    return experiment.seeds >= LEAST_SEEDS and base.patience + 2 >= base.epochs


def _sizes(experiment: Experiment, base: FitConfig) -> list[Planned]:
    assert experiment.sizes is not None
    made = []
    for budget in experiment.sizes.budgets:
        for share in experiment.sizes.shares:
            if share == 1 and is_whole_the_baseline(experiment):
                continue
            epochs = base.epochs if budget == "epochs" else min(100, round(base.epochs / share))
            for seed in range(max(LEAST_SEEDS, experiment.seeds)):
                config = base.model_copy(
                    update={"seed": seed, "epochs": epochs, "patience": max(base.patience, epochs)}
                )
                name = f"rows-{100 * share:g}-{budget}-s{seed}"
                made.append(Planned(name, f"rows {100 * share:g} %", config, seed, share, budget))
    return made


def _rungs(experiment: Experiment, base: FitConfig) -> list[Planned]:
    """The ladder's runs, rung by rung; the rung that is the baseline's own model has its runs already."""
    made = []
    for model in experiment.ladder.models if experiment.ladder else ():
        if model == experiment.base:
            continue
        change = f"model = {model}"
        for seed in range(experiment.seeds):
            config = base.model_copy(update={"seed": seed})
            made.append(Planned(_named(change, seed), change, config, seed, model=model))
    return made


def nested_rows(ids: Sequence[str], share: float, seed: int) -> list[str]:
    """The ids of a share of the rows: with one seed a smaller share's rows are all in a larger one's."""
    ordered = sorted(ids)
    random.Random(seed).shuffle(ordered)
    return ordered[: max(1, round(share * len(ordered)))]
