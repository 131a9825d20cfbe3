"""A curriculum (Bengio et al. 2009): stages one after another on one adapter, each with rows, passes and rate of its own.

Each stage is a whole run in RUN/stages/N, by either engine, and starts from the adapter that the stage before kept; what a
stage has finished is not done again. Validation rows are the same in all stages, so the best epoch of all is the run's.
Whether an order helps is for `graduate train experiment` to say: `vary: {stages: [[...]]}` beside the same rows shuffled.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec

from training import label_engine as engine
from training import lora, run_log
from training.build import key_of
from training.config import FitConfig, Stage
from training.curves import draw
from training.dataset import Dataset, Example, digest_of
from training.encode import encode
from training.errors import DataError
from training.train import EpochResult, RunResult, Tell, best_of


class StageRun(Protocol):
    """A run of either engine."""

    adapted: Any

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""

    def fit(self) -> RunResult:
        """Train."""


@dataclass(frozen=True, slots=True)
class StageOrder:
    """What one stage is asked to be."""

    folder: Path
    config: FitConfig
    dataset: Dataset
    start: Path | None
    """The adapter to go on from."""
    tell: Tell


Maker = Callable[[StageOrder], StageRun]


class Curriculum:
    """All stages of one fit, with the files of a run beside them."""

    def __init__(
        self,
        folder: Path,
        config: FitConfig,
        dataset: Dataset,
        model: Any,
        tokenizer: Any,
        make: Maker,
        tell: Tell | None = None,
        *,
        start: Path | None = None,
    ) -> None:
        """Choose the rows of every stage; nothing is written yet.

        Args:
            make: a stage's run, by the engine that the caller chose.
            start: adapter folder that the first stage goes on from.

        Raises:
            DataError: a stage's dataset is another task's, or has held-out rows of the run's among its training rows.
        """
        assert config.stages, "a run without stages is no curriculum"
        self.folder, self.config, self.make = folder, config, make
        self.tell = tell or (lambda event: None)
        self.start = start
        self.is_main = True
        losses = _losses(config, dataset, model, tokenizer)
        self.parts = [stage_rows(stage, dataset, tokenizer, losses) for stage in config.stages]

    def fit(self) -> RunResult:
        """Train stage after stage; the best epoch's adapter of all stages is in `adapter/`."""
        results: list[RunResult] = []
        start = self.start
        for number, (stage, part) in enumerate(zip(self.config.stages, self.parts, strict=True), 1):
            place = self.folder / "stages" / f"{number}"
            results.append(self._stage(number, StageOrder(place, self._settings(stage), part, start, self._telling(number))))  # fmt: skip
            start = place / "adapter"
        return self._write(results)

    def _settings(self, stage: Stage) -> FitConfig:
        rate = stage.learning_rate or self.config.optimizer.learning_rate
        optimizer = self.config.optimizer.model_copy(update={"learning_rate": rate})
        return self.config.model_copy(
            update={"stages": (), "epochs": stage.epochs, "optimizer": optimizer}
        )

    def _telling(self, number: int) -> Tell:
        return lambda event: self.tell(replace(event, phase=f"stage {number}, {event.phase}"))

    def _stage(self, number: int, order: StageOrder) -> RunResult:
        known = {
            "config": order.config.model_dump(mode="json"),
            "dataset": order.dataset.info.digest,
            "start": None if order.start is None else str(order.start),
        }
        said, done = order.folder / "stage.json", order.folder / "run.json"
        if said.exists() and json.loads(said.read_text()) != known:
            for later in range(
                number, len(self.config.stages) + 1
            ):  # what went on from it is void too
                shutil.rmtree(self.folder / "stages" / f"{later}", ignore_errors=True)
        if done.exists():
            return msgspec.json.decode(done.read_bytes(), type=RunResult)
        run = self.make(order)
        self.is_main = run.is_main
        if self.is_main:
            order.folder.mkdir(parents=True, exist_ok=True)
            said.write_text(json.dumps(known))
        try:
            return run.fit()
        finally:
            run.adapted.unload()  # the next stage lays its own on the same model

    def _write(self, results: Sequence[RunResult]) -> RunResult:
        """The run's files out of the stages'."""
        epochs: list[EpochResult] = []
        lines: list[str] = []
        seen, kept = 0, (0, 0)
        for number, result in enumerate(results, 1):
            for line in run_log.lines(self.folder / "stages" / f"{number}" / "log.jsonl"):
                moved = {
                    "epoch": line["epoch"] + len(epochs),
                    "rows": line["rows"] + seen,
                    "stage": number,
                }
                lines.append(json.dumps({**line, **moved}))
            own = [replace(e, epoch=e.epoch + len(epochs)) for e in result.epochs]
            if not epochs or best_of([*epochs, *own], self.config.choose_by) in own:
                kept = (number, result.best)
            epochs += own
            seen += result.rows * len(result.epochs)
        best = best_of(epochs, self.config.choose_by)
        seconds = sum(e.seconds for e in epochs)
        whole = RunResult(
            best=best.epoch, epochs=tuple(epochs), rows=max(r.rows for r in results),
            cut_rows=max(r.cut_rows for r in results), trained_parameters=results[0].trained_parameters,
            seconds=sum(r.seconds for r in results), rows_per_second=seen / max(seconds, 1e-9),
        )  # fmt: skip
        if self.is_main:
            (self.folder / "config.json").write_text(self.config.model_dump_json(indent=2))
            (self.folder / "log.jsonl").write_text("\n".join(lines) + "\n")
            shutil.rmtree(self.folder / "adapter", ignore_errors=True)
            shutil.copytree(self.folder / "stages" / f"{kept[0]}" / "adapter", self.folder / "adapter")  # fmt: skip
            draw(self.folder, self.config.tensorboard)
            (self.folder / "run.json").write_text(json.dumps(asdict(whole), indent=2))
        return whole


def _losses(config: FitConfig, dataset: Dataset, model: Any, tokenizer: Any) -> dict[str, float]:
    """Row → the base model's loss on its answer, nats a token; {} where no stage orders by it."""
    if all(stage.order != "loss" or stage.share == 1 for stage in config.stages):
        return {}
    info, found = dataset.info, dict[str, float]()
    sources = {s.dataset for s in config.stages if s.order == "loss" and s.share < 1}
    examples = [e for s in sources for e in (dataset if s is None else Dataset.load(s)).of("train")]
    adapted = lora.lay_on(model, config.lora, config.seed)
    try:
        for start in range(0, len(examples), 32):
            part = [encode(e, tokenizer, info.prompt, info.max_input_chars) for e in examples[start : start + 32]]  # fmt: skip
            states = engine.cache_states(adapted, part)
            for row, state in zip(part, states, strict=True):
                found[row.id] = engine.validate(adapted, [row], [state], 1).loss
    finally:
        adapted.unload()
    return found


def stage_rows(stage: Stage, dataset: Dataset, tokenizer: Any, losses: dict[str, float]) -> Dataset:
    """The run's dataset with the training rows of a stage, its held-out rows as they are.

    Raises:
        DataError: see `Curriculum`.
    """
    source = dataset if stage.dataset is None else Dataset.load(stage.dataset)
    info = dataset.info
    for key in ("task", "prompt", "max_input_chars"):
        if getattr(source.info, key) != getattr(info, key):
            raise DataError(
                f"{source.path}: {key} = {getattr(source.info, key)!r}, the run's dataset has {getattr(info, key)!r}"
            )
    rows = source.of("train")
    held = tuple(e for e in dataset.examples if e.split != "train")
    inputs = {key_of(e.messages) for e in held}
    leaks = [e.id for e in rows if key_of(e.messages) in inputs]
    if leaks:
        raise DataError(
            f"{source.path}: {len(leaks)} training rows are held-out rows of {dataset.path}, the first is {leaks[0]}"
        )

    def place(example: Example) -> tuple[float, ...]:
        if stage.order == "noise":
            disputed = (
                None not in (example.gold, example.teacher) and example.gold != example.teacher
            )
            return (disputed, -example.weight)
        if stage.order == "length":
            return (len(encode(example, tokenizer, info.prompt, info.max_input_chars)),)
        return (losses.get(example.id, 0.0),)

    first = sorted(rows, key=lambda e: (place(e), e.id))[: max(1, round(stage.share * len(rows)))]
    chosen = {e.id for e in first}
    kept = (*(e for e in rows if e.id in chosen), *held)
    counts = {**info.counts, "train": len(chosen)}
    return replace(
        dataset, examples=kept, info=msgspec.structs.replace(info, counts=counts, digest=digest_of(kept))
    )  # fmt: skip
