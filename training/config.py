"""The run file of `graduate train fit`: one line a key, unknown keys are errors.

`--config FILE` reads YAML, `--set a.b=c` lays single keys over it.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from training.errors import ConfigError

Shape = TypeVar("Shape", bound=BaseModel)


Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS: tuple[Target, ...] = get_args(Target)


def _without_defaults(
    model: BaseModel, data: dict[str, Any], keys: Iterable[str]
) -> dict[str, Any]:
    """What a run is known by stays as it was before a key came, where the key has its default."""
    fields = type(model).model_fields
    return {
        k: v for k, v in data.items() if k not in keys or getattr(model, k) != fields[k].default
    }


class Lora(BaseModel):
    """The adapter's shape."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=16, ge=1, le=256)
    """LoRA's r."""
    alpha: int = Field(default=32, ge=1)
    """LoRA's scale is alpha / rank."""
    top_layers: int | None = Field(default=10, ge=1)
    """Layers, counted from the head, that are trained; the ones below run once. None trains all."""
    targets: tuple[Target, ...] = Field(default=TARGETS, min_length=1)
    """Linear modules of a layer that are adapted; all seven unless told otherwise."""

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, dump(self), ("targets",))


class Optimizer(BaseModel):
    """AdamW with warm-up, then the learning rate's schedule."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_share: float = Field(default=0.06, ge=0, lt=1)
    """Share of all steps with a rising learning rate."""
    max_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up; `cosine` and `linear` end at zero."""

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, dump(self), ("schedule",))


class Stage(BaseModel):
    """One stage of a curriculum: which rows, how often, how fast. The adapter of the stage before goes on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: Path | None = None
    """Dataset folder of the same route whose training rows this stage sees; None takes the run's."""
    order: Literal["loss", "length", "noise"] = "loss"
    """Which rows come first: `loss`, those that the base model finds easiest; `length`, the shortest; `noise`, those on
    which teacher and gold agree, then by weight."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the rows that the stage sees, the first of that order."""
    epochs: int = Field(default=1, ge=1, le=100)
    learning_rate: float | None = Field(default=None, gt=0)
    """In place of `optimizer.learning_rate`."""


class Trl(BaseModel):
    """What only the engine `trl` reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Literal["auto", "cpu"] = "auto"
    """`auto` takes a GPU when there is one."""
    device_batch: int | None = Field(default=None, ge=1)
    """Rows that a device holds at once; `batch_size` stays what a step sees, by accumulation. None takes `batch_size` on a
    CPU and the largest share of it that fits on a GPU, tried before training."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "nf4"] = "auto"
    """`auto` is bf16 on GPUs that have it, fp32 on CPUs, where bf16 is slower (measured). `nf4`: the base model in 4 bits by
    bitsandbytes (QLoRA, Dettmers et al. 2023), products in bf16; needs a CUDA GPU."""
    checkpointing: bool | None = None
    """Compute activations again instead of keeping them; None does so on a GPU alone."""
    save_steps: int = Field(default=100, ge=1)
    """Steps between two checkpoints within an epoch; a killed run loses at most so many."""


class Preference(BaseModel):
    """Training on pairs of a better and a worse answer (DPO, Rafailov et al. 2023)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    beta: float = Field(default=0.1, gt=0)
    """How strongly the adapter is held to the one that it starts from."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """In place of `optimizer.learning_rate`, which is far too high for DPO."""
    answer_weight: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy of the better answer beside DPO's own loss (RPO, Pang et al. 2024): without it DPO may
    lower the probability of both answers, and short answers fall apart."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a pair is the wrong way round; above 0 the loss is robust DPO's."""


class Explanations(BaseModel):
    """Explanations that are learned as a second task, and never served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Path
    """JSON Lines with `id` or the input, and `explanation`."""
    weight: float = Field(default=0.5, gt=0)
    """Weight of an explanation's tokens beside an answer's."""
    max_chars: int = Field(default=600, ge=1)
    """Longer explanations are left out and counted: a cut one teaches to stop anywhere."""
    marker: str = Field(default="Why? ", min_length=1)
    """What stands before the student's prompt when an explanation is asked for."""


class FitConfig(BaseModel):
    """Everything that decides a training run, the dataset and the base model aside."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Literal["label", "trl"] = "label"
    """`label`: short answers (labels, small JSON), fast on a CPU. `trl`: any answer, CPU or GPU, and preference pairs."""
    epochs: int = Field(default=4, ge=1, le=100)
    """Passes over the training rows."""
    max_rows_seen: int | None = Field(default=None, ge=1)
    """Rows seen at most: on many rows there are fewer passes (at least one). None leaves `epochs` as it is."""
    batch_size: int = Field(default=8, ge=1)
    patience: int = Field(default=2, ge=1)
    """Epochs without a better one after which training stops."""
    choose_by: Literal["loss", "exact"] = "loss"
    """Which epoch is the better one on validation rows: by the loss, or by the share of exact answers, the task's metric."""
    seed: int = 0
    lora: Lora = Lora()
    optimizer: Optimizer = Optimizer()
    max_cut_share: float = Field(default=0.2, ge=0, le=1)
    """Share of rows whose input may be cut; above it preflight refuses."""
    max_memory_gib: float | None = Field(default=None, gt=0)
    """Memory that preflight may estimate for the run; None is what the machine has. More accepts that it may be killed."""
    target_mix: dict[str, float] | None = None
    """Each class's share where the student will work, such as {"yes": 0.5, "no": 0.5}; None keeps the training mix."""
    target_mix_by: Literal["logit", "weights"] = "logit"
    """How the mix gets into the adapter: logit-adjusted loss, or weights of the rows (`training/priors.py`)."""
    average_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the last steps whose weights are averaged into the adapter; 0 keeps the last weights."""
    frozen_products: Literal["auto", "fp32", "bf16"] = "auto"
    """Matrix products of frozen weights; `auto` takes bf16 where this CPU multiplies it faster."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; None leaves torch's choice."""
    explanations: Explanations | None = None
    stages: tuple[Stage, ...] = ()
    """A curriculum: stages one after another on one adapter, in place of `epochs` passes over all rows in a fresh order."""
    tensorboard: bool = False
    """Also write the curves as TensorBoard events into RUN/tensorboard; needs the package tensorboard."""
    trl: Trl = Trl()
    preference: Preference = Preference()

    @model_serializer(mode="wrap")
    def _of_its_engine(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without keys that are not used: what a run is known by stays as it was before they came."""
        data: dict[str, Any] = dump(self)
        if self.explanations is None:
            data.pop("explanations", None)
        data = _without_defaults(
            self, data, ("choose_by", "max_memory_gib", "stages", "tensorboard")
        )
        if self.engine == "label":
            data.pop("trl", None)
            data.pop("preference", None)
        return data

    @property
    def passes(self) -> float:
        """Passes over all training rows that are asked for, by stages or without."""
        return sum(stage.share * stage.epochs for stage in self.stages) or self.epochs

    @model_validator(mode="after")
    def _engine_can(self) -> "FitConfig":
        if self.engine == "trl":
            if self.target_mix and self.target_mix_by == "logit":
                raise ValueError(
                    "engine trl aims at target_mix by weights: set target_mix_by=weights"
                )
            if self.average_share:
                raise ValueError(
                    "average_share is the engine label's; with engine trl it must be 0"
                )
            if self.trl.device_batch and self.trl.device_batch > self.batch_size:
                raise ValueError(
                    f"trl.device_batch = {self.trl.device_batch} is more than batch_size = {self.batch_size}"
                )
        return self


def epochs_for(config: FitConfig, rows: int) -> int:
    """Passes over `rows` training rows."""
    if config.max_rows_seen is None or not rows:
        return config.epochs
    return max(1, min(config.epochs, round(config.max_rows_seen / rows)))


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`["lora.rank=8", "epochs=3"]` as nested keys; values are read as YAML.

    Raises:
        ConfigError: an assignment without `=`, with a value that is no YAML, or below a key that has a value.
    """
    nested: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {assignment!r}: allowed: KEY=VALUE, such as lora.rank=8")
        at = nested
        *path, last = key.split(".")
        for part in path:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise ConfigError(f"--set {assignment!r}: {part!r} was given a value before it")
        try:
            at[last] = yaml.safe_load(value)
        except yaml.YAMLError as why:
            raise ConfigError(f"--set {assignment!r}: not a YAML value: {_one_line(why)}") from why
    return nested


def overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`below` with the keys of `above` laid over it, mappings merged key by key."""
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        merged[key] = (
            overlay(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
        )
    return merged


def load(file: Path | None, assignments: Iterable[str] = ()) -> FitConfig:
    """The run's configuration.

    Raises:
        ConfigError: with the file, the key, the value, and what is allowed.
    """
    return load_as(FitConfig, file, assignments)


def load_as(model: type[Shape], file: Path | None, assignments: Iterable[str] = ()) -> Shape:
    """A YAML file of this shape, with single keys laid over it.

    Raises:
        ConfigError: with the file, the key, the value, and what is allowed.
    """
    data: Any = {}
    if file is not None:
        try:
            data = yaml.safe_load(file.read_text()) or {}
        except (OSError, UnicodeDecodeError) as why:
            raise ConfigError(f"{file}: cannot be read: {why}") from why
        except yaml.YAMLError as why:
            raise ConfigError(f"{file}: not YAML: {_one_line(why)}") from why
        if not isinstance(data, dict):
            raise ConfigError(f"{file}: allowed: a mapping of keys")
    try:
        return model.model_validate(overlay(data, parse_assignments(assignments)))
    except ValidationError as why:
        raise ConfigError(
            "\n".join(f"{file or '--set'}: {_problem(model, error)}" for error in why.errors())
        ) from why


def _one_line(why: yaml.YAMLError) -> str:
    return " ".join(str(why).split())


def _problem(model: type[BaseModel], error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        names = _names(model)
        near = difflib.get_close_matches(path, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{path}: unknown key; {hint}allowed: {', '.join(names)}"
    message = error["msg"].removeprefix("Value error, ")
    message = f"{message[0].lower()}{message[1:]}"
    return f"{path} = {error['input']!r}: {message}" if path else message


def _names(model: type[BaseModel], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names += _names(inner, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names
