"""What a run under a transformers trainer leaves and tells: a log line a step and an epoch, the best epoch's adapter, the curve.

Stops the trainer when validation no longer improves. Knows the run's files and the trainer's callbacks, not which
trainer it is.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training import lora, run_log
from training.curves import draw
from training.label_engine import Validation
from training.train import EpochResult, FitEvent, Tell, best_of


@dataclass(frozen=True, slots=True)
class Pace:
    """How steps count rows: what one step sees at most, and rows and steps of an epoch."""

    batch_size: int
    rows: int

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return math.ceil(self.rows / self.batch_size)

    def seen(self, step: int) -> int:
        """Rows seen after so many steps of the run; an epoch's last batch may be short."""
        epochs, steps = divmod(step, self.steps)
        return epochs * self.rows + min(self.rows, steps * self.batch_size)


class Follow(TrainerCallback):
    """The run's files, in the form that the fast path leaves."""

    def __init__(
        self,
        folder: Path,
        adapted: PeftModel,
        pace: Pace,
        validate: Callable[[], Validation],
        *,
        patience: int,
        choose_by: str,
        tensorboard: bool = False,
        tell: Tell,
    ) -> None:
        """Nothing is written yet.

        Args:
            validate: loss and exact answers of the held-out rows, now. Every process of a run calls it, so that all
                come to the same decision about stopping.
        """
        self.folder, self.adapted, self.pace = folder, adapted, pace
        self.validate, self.tell = validate, tell
        self.patience, self.choose_by, self.tensorboard = patience, choose_by, tensorboard
        self.epochs: list[EpochResult] = []
        self._losses: list[float] = []
        self._before = 0.0
        """Seconds of this epoch that an interrupted run has spent."""
        self._began = time.perf_counter()

    @property
    def log(self) -> Path:
        """`log.jsonl`."""
        return self.folder / "log.jsonl"

    @property
    def best(self) -> EpochResult:
        """The best epoch so far."""
        return best_of(self.epochs, self.choose_by)

    def take_up(self, step: int) -> str:
        """Go on after `step`: whole epochs are known again. Returns the log without what lies beyond that step."""
        lines = run_log.lines(self.log) if step else []
        seen = self.pace.seen(step)
        kept = [line for line in lines if line["rows"] <= seen]
        self.epochs = [
            EpochResult(**{k: v for k, v in line.items() if k != "rows"})
            for line in kept
            if "validation_loss" in line
        ]
        of_epoch = [
            line for line in kept if "loss" in line and line["epoch"] == len(self.epochs) + 1
        ]
        self._losses = [line["loss"] for line in of_epoch]
        self._before = of_epoch[-1].get("seconds", 0.0) if of_epoch else 0.0
        return "".join(json.dumps(line) + "\n" for line in kept)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """A checkpoint of an epoch's last step comes before its validation, which is then made up for here."""
        step = state.global_step
        if step and step % self.pace.steps == 0 and len(self.epochs) < step // self.pace.steps:
            self._end_epoch(state, control)
        elif self.epochs and self._out_of_patience():
            control.should_training_stop = True
        self._began = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **more: Any,
    ) -> None:
        """One line a step."""
        if not logs or "loss" not in logs:
            return
        loss, number = float(logs["loss"]), len(self.epochs) + 1
        self._losses.append(loss)
        seen = self.pace.seen(state.global_step)
        done = seen - (number - 1) * self.pace.rows
        extra = {k.removeprefix("rewards/"): v for k, v in logs.items() if k.startswith("rewards/")}
        self.tell(FitEvent(f"epoch {number}", done, self.pace.rows, loss))
        line = {"epoch": number, "rows": seen, "loss": loss, "seconds": self._seconds(), **extra}
        self._write(state, line)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Validate; keep the adapter when it is the best; stop when there has been none for long enough."""
        self._end_epoch(state, control)
        control.should_save = True

    def _end_epoch(self, state: TrainerState, control: TrainerControl) -> None:
        seconds, number = self._seconds(), len(self.epochs) + 1
        held = self.validate()
        trained = sum(self._losses) / max(1, len(self._losses))
        result = EpochResult(number, trained, held.loss, held.exact_share, seconds)
        self.epochs.append(result)
        self._losses, self._before = [], 0.0
        self._write(state, {"rows": number * self.pace.rows, **asdict(result)})
        if state.is_world_process_zero:
            if result is self.best:
                lora.save_adapter(self.adapted, self.folder / "adapter")
            draw(self.folder, self.tensorboard)
        if self._out_of_patience():
            control.should_training_stop = True
        self._began = time.perf_counter()

    def _out_of_patience(self) -> bool:
        return len(self.epochs) - self.best.epoch > self.patience

    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._began

    def _write(self, state: TrainerState, line: dict[str, Any]) -> None:
        if state.is_world_process_zero:
            with self.log.open("a") as file:
                file.write(json.dumps(line) + "\n")
