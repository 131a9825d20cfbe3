"""Whether model, template, mask and adapter work together, before rows are paid for with hours: two checks on a few rows.

At the start the adapter must change nothing (LoRA's B is zero), so the engine's own loss has to be the plain model's; and a
few rows must be learnable by heart, since a set-up that cannot do that has a wrong mask, rate or target and learns nothing
from many rows either.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from training import label_engine as engine
from training import lora, whole_model
from training.config import FitConfig
from training.encode import Encoded

ROWS_AT_INIT = 16
OVERFIT_PASSES = 60
ENOUGH_EXACT = 0.95
"""Share of the rows that must be answered exactly: twins with different answers cannot all be."""
SAME_LOSS = 0.02
"""Nats by which engine and plain model may differ: products round otherwise in another order."""


@dataclass(frozen=True, slots=True)
class AtStart:
    """Loss on a few training rows before a step, nats a token."""

    rows: int
    engine: float
    """Through the engine, fresh adapter laid on."""
    plain: float
    """Of the base model alone, all layers at once."""
    uniform: float
    """Of a model that takes all tokens for equally probable: ln of the vocabulary."""

    def refusals(self) -> list[str]:
        """What must not be."""
        if math.isfinite(self.engine) and abs(self.engine - self.plain) <= SAME_LOSS * max(
            1.0, self.plain
        ):
            return []  # fmt: skip
        return [
            f"before a step the engine's loss is {self.engine:.3f} and the base model's {self.plain:.3f} nats a token: "
            "they must be equal, since a fresh adapter changes nothing"
        ]

    def warnings(self) -> list[str]:
        """What a pretrained model should not show."""
        if self.plain <= self.uniform:
            return []
        return [
            f"before a step the base model's loss on the answers is {self.plain:.2f} nats a token, more than guessing "
            f"({self.uniform:.2f}): look at the template and at whether this is the right base model"
        ]


@dataclass(frozen=True, slots=True)
class Overfit:
    """What came of learning a few rows by heart."""

    rows: int
    passes: int
    loss: float
    exact_share: float

    def refusals(self) -> list[str]:
        """What must not be."""
        if self.exact_share >= ENOUGH_EXACT:
            return []
        return [
            f"{self.rows} rows cannot be learnt by heart: after {self.passes} passes {100 * self.exact_share:.0f} % of their "
            f"answers are exact (loss {self.loss:.3f}); look at optimizer.learning_rate, lora and at rows with one input and "
            "two answers"
        ]


def at_start(model: Any, rows: Sequence[Encoded], config: FitConfig) -> AtStart:
    """Loss of a few rows by the engine and by the plain model; `model` is left as it was."""
    few = list(rows[:ROWS_AT_INIT])
    adapted = lora.lay_on(model, config.lora, config.seed)
    try:
        found = engine.validate(adapted, few, engine.cache_states(adapted, few), config.batch_size)
        with adapted.disable_adapter():
            plain = whole_model.validate(adapted, few, config.batch_size)
    finally:
        adapted.unload()
    return AtStart(len(few), found.loss, plain.loss, math.log(model.config.vocab_size))


def overfit(
    model: Any,
    rows: Sequence[Encoded],
    config: FitConfig,
    tell: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> Overfit:
    """Train on these rows alone at the configuration's rate until their answers are exact; `model` is left as it was.

    Args:
        tell: hears passes done, passes at most, and the last loss.
    """
    adapted = lora.lay_on(model, config.lora, config.seed)
    try:
        states = engine.cache_states(adapted, rows)
        trained = [p for p in adapted.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=config.optimizer.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        flat = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
        generator = torch.Generator().manual_seed(config.seed)
        done, held = 0, engine.validate(adapted, rows, states, config.batch_size)
        while done < OVERFIT_PASSES and held.exact_share < ENOUGH_EXACT:
            for _ in engine.train_epoch(
                adapted, optimizer, flat, rows, states, batch_size=config.batch_size, generator=generator,
                max_norm=config.optimizer.max_norm,
            ):  # fmt: skip
                pass
            done += 1
            held = engine.validate(adapted, rows, states, config.batch_size)
            tell(done, OVERFIT_PASSES, held.loss)
    finally:
        adapted.unload()
    return Overfit(len(rows), done, held.loss, held.exact_share)
