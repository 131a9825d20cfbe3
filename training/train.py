"""One training run: dataset and base model to a fitted adapter in a run folder, resumable after each epoch.

The loop's arithmetic is in `label_engine`; here are the run's files, its schedule and its early stopping:

    run/config.json    what was asked         run/log.jsonl     one line a step and an epoch
    run/adapter/       the best epoch         run/curve.png     loss against rows seen
    run/resume.pt      state after the last whole epoch          run/run.json      what came out
"""

import contextlib
import json
import math
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from training import explanations, lora, precision, priors
from training import label_engine as engine
from training.average import WeightAverage
from training.config import FitConfig, epochs_for
from training.curves import draw
from training.dataset import Dataset, class_of
from training.encode import Encoded, encode
from training.errors import DataError
from training.explanations import Added
from training.priors import Shift
from training.states import StateCache

SAVE_SECONDS = 60.0
"""A run that is killed loses at most so much of an epoch."""
KEPT_AT_ONCE = 256
"""Rows whose hidden states are computed and put on disk together, when they are kept."""


@dataclass(frozen=True, slots=True)
class FitEvent:
    """Progress of a run: what is being done, how much of it is done, and the last loss."""

    phase: str
    done: int
    total: int
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class EpochResult:
    """What one epoch gave."""

    epoch: int
    train_loss: float
    validation_loss: float
    exact_share: float
    seconds: float


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a whole run gave; `best` is the epoch whose adapter was kept."""

    best: int
    epochs: tuple[EpochResult, ...]
    rows: int
    cut_rows: int
    trained_parameters: int
    seconds: float
    rows_per_second: float


Tell = Callable[[FitEvent], None]


def best_of(epochs: Sequence[EpochResult], by: str) -> EpochResult:
    """The epoch whose adapter is kept: least validation loss, or most exact answers (then the least loss)."""
    if by == "exact":
        return min(epochs, key=lambda e: (-e.exact_share, e.validation_loss))
    return min(epochs, key=lambda e: e.validation_loss)


class RunPaused(Exception):
    """The run's time was up; it is on disk and goes on from there when it is started again."""


def explanations_of(config: FitConfig, dataset: Dataset, tokenizer: Any) -> Added | None:
    """Rows of the second task, when the configuration names explanations.

    Raises:
        DataError: their file cannot be used.
    """
    if config.explanations is None:
        return None
    known = explanations.load(config.explanations.file)
    info = dataset.info
    return explanations.rows(
        config.explanations,
        known,
        dataset.of("train"),
        tokenizer,
        info.prompt,
        info.max_input_chars,
    )


def _schedule(kind: str, step: int, warmup: int, total: int) -> float:
    """Linear warm-up, then a cosine or a line to zero, or no change."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[
        kind
    ]


class Run:
    """One fit. Everything random comes from the configuration's seed, so the same run gives the same adapter."""

    is_main = True
    """There is no other process of this run that could write its files."""

    def __init__(
        self,
        folder: Path,
        config: FitConfig,
        dataset: Dataset,
        model: Any,
        tokenizer: Any,
        tell: Tell | None = None,
        *,
        states: StateCache | None = None,
        pause_at: float | None = None,
        start: Path | None = None,
    ) -> None:
        """Make the adapter and its optimiser; nothing is read from the run's folder yet.

        Args:
            start: adapter folder of the same shape to go on from; None starts with a fresh one.
            states: hidden states of earlier runs over the same rows and base model.
            pause_at: `time.monotonic()` from which the run saves itself and raises `RunPaused`.
        """
        self.folder = folder
        self.config = config
        self.tell = tell or (lambda event: None)
        self.states = states
        self.pause_at = pause_at
        if config.threads:
            torch.set_num_threads(config.threads)
        template, limit = dataset.info.prompt, dataset.info.max_input_chars
        self.train = [encode(e, tokenizer, template, limit) for e in dataset.of("train")]
        self.validation = [encode(e, tokenizer, template, limit) for e in dataset.of("validation")]
        self.shift = self._aim(dataset) if config.target_mix else None
        self.second_task = explanations_of(config, dataset, tokenizer)
        if self.second_task is not None:
            self.train += self.second_task.rows
        self.adapted = lora.lay_on(model, config.lora, config.seed)
        if start is not None:
            lora.restore_adapter(self.adapted, start)
        self.trained = [p for p in self.adapted.parameters() if p.requires_grad]
        self.steps_per_epoch = math.ceil(len(self.train) / config.batch_size)
        self.passes = epochs_for(config, len(self.train))
        self.steps = self.passes * self.steps_per_epoch
        self.optimizer, self.schedule = self._optimiser()
        self.generator = torch.Generator().manual_seed(config.seed)
        self.epochs: list[EpochResult] = []
        self.average = WeightAverage(self.trained)
        self._underway: dict[str, Any] | None = None
        self._saved_at = time.monotonic()

    def _optimiser(self) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
        chosen = self.config.optimizer
        optimizer = torch.optim.AdamW(
            self.trained,
            lr=chosen.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=chosen.weight_decay,
        )
        warmup = max(1, round(chosen.warmup_share * self.steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: _schedule(chosen.schedule, step, warmup, self.steps)
        )
        return optimizer, schedule

    def _aim(self, dataset: Dataset) -> Shift | None:
        """The class mix's correction, or None after weighting the rows."""
        answer, target = dataset.info.answer, self.config.target_mix or {}
        labels = [class_of(e.completion, answer) or "" for e in dataset.of("train")]
        if self.config.target_mix_by == "logit":
            return priors.logit_shift([r.completion_ids for r in self.train], labels, target)
        weights = dict(zip(labels, priors.row_weights(labels, target), strict=True))
        held = [class_of(e.completion, answer) or "" for e in dataset.of("validation")]
        for rows, names in ((self.train, labels), (self.validation, held)):
            rows[:] = [
                replace(row, weight=row.weight * weights.get(name, 1.0))
                for row, name in zip(rows, names, strict=True)
            ]
        return None

    def fit(self) -> RunResult:
        """Train until the last epoch or until validation stops improving; the best epoch's adapter is in `adapter/`."""
        began = time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.json").write_text(self.config.model_dump_json(indent=2))
        if self.second_task is not None:
            report = json.dumps(self.second_task.report(), indent=2)
            (self.folder / "explanations.json").write_text(report)
        self._resume()
        with self.products():
            self._epochs()
        fitted = RunResult(
            best=self.best.epoch,
            epochs=tuple(self.epochs),
            rows=len(self.train),
            cut_rows=sum(row.was_cut for row in self.train),
            trained_parameters=sum(p.numel() for p in self.trained),
            seconds=time.perf_counter() - began,
            rows_per_second=len(self.train)
            * len(self.epochs)
            / max(sum(e.seconds for e in self.epochs), 1e-9),
        )
        (self.folder / "run.json").write_text(json.dumps(asdict(fitted), indent=2))
        return fitted

    def products(self) -> contextlib.AbstractContextManager[None]:
        """Inside, frozen weights multiply as the configuration says."""
        wanted = self.config.frozen_products
        if wanted == "bf16" or (wanted == "auto" and precision.is_bf16_faster()):
            return precision.frozen_in_bf16(self.adapted)
        return contextlib.nullcontext()

    def _epochs(self) -> None:
        train_states = self.cache("training rows", self.train)
        validation_states = self.cache("validation rows", self.validation)
        while len(self.epochs) < self.passes and not self._out_of_patience():
            result = self._epoch(train_states, validation_states)
            self.epochs.append(result)
            if result is self.best:
                with self.average.in_place():
                    lora.save_adapter(self.adapted, self.folder / "adapter")
            self._save_resume()
            draw(self.folder, self.config.tensorboard)

    @property
    def best(self) -> EpochResult:
        """The best epoch so far."""
        return best_of(self.epochs, self.config.choose_by)

    def _out_of_patience(self) -> bool:
        return bool(self.epochs) and len(self.epochs) - self.best.epoch > self.config.patience

    def cache(self, what: str, rows: list[Encoded]) -> list[torch.Tensor]:
        """Hidden states that the lower layers leave for these rows; from disk where they are kept."""
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            self.tell(FitEvent(f"lower layers, {what}", done, len(rows)))

        if self.states is None:
            return engine.cache_states(self.adapted, rows, progress=count)
        for start in range(0, len(rows), KEPT_AT_ONCE):
            part = rows[start : start + KEPT_AT_ONCE]
            missing = [row for row in part if row not in self.states]
            self.states.add(missing, engine.cache_states(self.adapted, missing))
            count(len(part))
            if missing and self._is_time_up():
                raise RunPaused
        return [self.states.get(row) for row in rows]

    def _is_time_up(self) -> bool:
        return self.pause_at is not None and time.monotonic() >= self.pause_at

    def _epoch(
        self, train_states: list[torch.Tensor], validation_states: list[torch.Tensor]
    ) -> EpochResult:
        number = len(self.epochs) + 1
        underway = self._underway or {"losses": [], "rows": 0, "seconds": 0.0}
        self._underway = None
        at_start = self.generator.get_state()
        began = time.perf_counter() - underway["seconds"]
        done, losses = underway["rows"], list(underway["losses"])
        with (self.folder / "log.jsonl").open("a") as log:
            for rows, loss in engine.train_epoch(
                self.adapted,
                self.optimizer,
                self.schedule,
                self.train,
                train_states,
                batch_size=self.config.batch_size,
                generator=self.generator,
                max_norm=self.config.optimizer.max_norm,
                shift=self.shift,
                skip_steps=len(losses),
            ):
                done += rows
                losses.append(loss)
                self.tell(FitEvent(f"epoch {number}", done, len(self.train), loss))
                seen = (number - 1) * len(self.train) + done
                log.write(json.dumps({"epoch": number, "rows": seen, "loss": loss}) + "\n")
                spent = time.perf_counter() - began
                part = {"losses": losses, "rows": done, "seconds": spent, "start": at_start}
                self._after_step(number, part)
            seconds = time.perf_counter() - began
            with self.average.in_place():
                held = engine.validate(
                    self.adapted,
                    self.validation,
                    validation_states,
                    self.config.batch_size * 2,
                    self.shift,
                )
            result = EpochResult(
                number, sum(losses) / len(losses), held.loss, held.exact_share, seconds
            )
            line = {"epoch": number, "rows": number * len(self.train)}
            log.write(json.dumps({**line, **asdict(result)}) + "\n")
        return result

    def _after_step(self, number: int, underway: dict[str, Any]) -> None:
        """Take the weights into the mean; save the state now and then, and before a pause."""
        taken = len(underway["losses"])
        if (number - 1) * self.steps_per_epoch + taken > (
            1 - self.config.average_share
        ) * self.steps:
            self.average.add()
        if taken == self.steps_per_epoch:
            return  # the epoch is over, and is saved as a whole after its validation
        is_time_up = self._is_time_up()
        if is_time_up or time.monotonic() > self._saved_at + SAVE_SECONDS:
            self._save_resume(underway)
        if is_time_up:
            raise RunPaused

    def _save_resume(self, underway: dict[str, Any] | None = None) -> None:
        state = {
            "config": self.config.model_dump_json(),
            # In order, not by name: within an epoch the lower layers are out of the model and names are others.
            "weights": self.trained,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "epochs": [asdict(e) for e in self.epochs],
            "average": self.average.state(),
            "underway": underway,
        }
        partial = self.folder / "resume.pt.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "resume.pt")
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        """Go on where an interrupted run with the same configuration was saved: after an epoch, or within one.

        Raises:
            DataError: what was saved is broken.
        """
        file = self.folder / "resume.pt"
        if not file.exists():
            return
        try:
            state = torch.load(file, weights_only=True)
        except (EOFError, RuntimeError, pickle.UnpicklingError) as why:
            raise DataError(f"{file}: cannot be read: delete it, and the run starts anew") from why
        if state["config"] != self.config.model_dump_json():
            return
        with torch.no_grad():
            for weights, kept in zip(self.trained, state["weights"], strict=True):
                weights.copy_(kept)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self._underway = state["underway"]
        self.generator.set_state((self._underway or {}).get("start", state["generator"]))
        self.average.restore(state["average"])
        self.epochs = [EpochResult(**e) for e in state["epochs"]]
