"""One training run: dataset and base model to a fitted adapter in a run folder, resumable after each epoch.

The loop's arithmetic is in `label_engine`; here are the run's files, its schedule and its early stopping:

    run/config.json    what was asked         run/log.jsonl     one line a step and an epoch
    run/adapter/       the best epoch         run/curve.png     loss against rows seen
    run/resume.pt      state after the last whole epoch          run/run.json      what came out
"""

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from training import label_engine as engine
from training import lora, precision
from training.config import FitConfig
from training.dataset import Dataset
from training.encode import Encoded, encode
from training.plots import loss_curve


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


def _schedule(step: int, warmup: int, total: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


class Run:
    """One fit. Everything random comes from the configuration's seed, so the same run gives the same adapter."""

    def __init__(
        self,
        folder: Path,
        config: FitConfig,
        dataset: Dataset,
        model: Any,
        tokenizer: Any,
        tell: Tell | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.tell = tell or (lambda event: None)
        if config.threads:
            torch.set_num_threads(config.threads)
        template, limit = dataset.info.prompt, dataset.info.max_input_chars
        self.train = [encode(e, tokenizer, template, limit) for e in dataset.of("train")]
        self.validation = [encode(e, tokenizer, template, limit) for e in dataset.of("validation")]
        self.adapted = lora.add_lora(
            model,
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            top_layers=config.lora.top_layers,
            seed=config.seed,
        )
        self.trained = [p for p in self.adapted.parameters() if p.requires_grad]
        self.steps = config.epochs * math.ceil(len(self.train) / config.batch_size)
        self.optimizer = torch.optim.AdamW(
            self.trained,
            lr=config.optimizer.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=config.optimizer.weight_decay,
        )
        warmup = max(1, round(config.optimizer.warmup_share * self.steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: _schedule(step, warmup, self.steps)
        )
        self.generator = torch.Generator().manual_seed(config.seed)
        self.epochs: list[EpochResult] = []

    def fit(self) -> RunResult:
        """Train until the last epoch or until validation stops improving; the best epoch's adapter is in `adapter/`."""
        began = time.perf_counter()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.json").write_text(self.config.model_dump_json(indent=2))
        self._resume()
        with self._products():
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

    def _products(self) -> contextlib.AbstractContextManager[None]:
        wanted = self.config.frozen_products
        if wanted == "bf16" or (wanted == "auto" and precision.is_bf16_faster()):
            return precision.frozen_in_bf16(self.adapted)
        return contextlib.nullcontext()

    def _epochs(self) -> None:
        train_states = self._cache("training rows", self.train)
        validation_states = self._cache("validation rows", self.validation)
        while len(self.epochs) < self.config.epochs and not self._out_of_patience():
            result = self._epoch(train_states, validation_states)
            self.epochs.append(result)
            if result is self.best:
                lora.save_adapter(self.adapted, self.folder / "adapter")
            self._save_resume()
            loss_curve(self.folder / "log.jsonl", self.folder / "curve.png")

    @property
    def best(self) -> EpochResult:
        """The epoch with the least validation loss so far."""
        return min(self.epochs, key=lambda e: e.validation_loss)

    def _out_of_patience(self) -> bool:
        return bool(self.epochs) and len(self.epochs) - self.best.epoch > self.config.patience

    def _cache(self, what: str, rows: list[Encoded]) -> list[torch.Tensor]:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            self.tell(FitEvent(f"lower layers, {what}", done, len(rows)))

        return engine.cache_states(self.adapted, rows, progress=count)

    def _epoch(
        self, train_states: list[torch.Tensor], validation_states: list[torch.Tensor]
    ) -> EpochResult:
        number = len(self.epochs) + 1
        began = time.perf_counter()
        done, losses = 0, []
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
            ):
                done += rows
                losses.append(loss)
                self.tell(FitEvent(f"epoch {number}", done, len(self.train), loss))
                seen = (number - 1) * len(self.train) + done
                log.write(json.dumps({"epoch": number, "rows": seen, "loss": loss}) + "\n")
            seconds = time.perf_counter() - began
            held = engine.validate(
                self.adapted, self.validation, validation_states, self.config.batch_size * 2
            )
            result = EpochResult(
                number, sum(losses) / len(losses), held.loss, held.exact_share, seconds
            )
            line = {"epoch": number, "rows": number * len(self.train)}
            log.write(json.dumps({**line, **asdict(result)}) + "\n")
        return result

    def _save_resume(self) -> None:
        weights = {n: p for n, p in self.adapted.named_parameters() if p.requires_grad}
        state = {
            "config": self.config.model_dump_json(),
            "weights": weights,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "epochs": [asdict(e) for e in self.epochs],
        }
        partial = self.folder / "resume.pt.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "resume.pt")

    def _resume(self) -> None:
        """Go on after the last whole epoch of an interrupted run with the same configuration."""
        file = self.folder / "resume.pt"
        if not file.exists():
            return
        state = torch.load(file, weights_only=True)
        if state["config"] != self.config.model_dump_json():
            return
        named = dict(self.adapted.named_parameters())
        with torch.no_grad():
            for name, value in state["weights"].items():
                named[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        self.epochs = [EpochResult(**e) for e in state["epochs"]]
