"""A run's curves: a torn log is read as far as it is whole, events are there for each pass, a missing package is said."""

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from serving.base_model import BaseModel
from training import curves, run_log
from training.config import FitConfig
from training.dataset import Dataset
from training.errors import ConfigError
from training.train import Run

HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None


def log_of(run: Path, *lines: Any, torn: str = "") -> None:
    run.mkdir(exist_ok=True)
    (run / curves.LOG).write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


STEP = {"epoch": 1, "rows": 8, "loss": 0.5}
EPOCH = {"epoch": 1, "rows": 16, "train_loss": 0.5, "validation_loss": 0.4, "exact_share": 0.25}


@pytest.mark.parametrize(
    "torn",
    [
        pytest.param('{"epoch": 1, "ro', id="killed while writing"),
        pytest.param('{"epoch": 1, "ro{"epoch": 1, "rows": 9, "loss": 1}\n', id="gone on behind it"),
        pytest.param("[1]\n3\n{}\n", id="lines that are none"),
    ],
)  # fmt: skip
def test_a_torn_log_is_drawn_as_far_as_it_is_whole(torn: str, tmp_path: Path) -> None:
    log_of(tmp_path / "run", STEP, EPOCH, torn=torn)
    assert run_log.lines(tmp_path / "run" / curves.LOG) == [STEP, EPOCH]
    curves.draw(tmp_path / "run", tensorboard=False)
    assert (tmp_path / "run" / curves.PICTURE).stat().st_size > 1000


@pytest.mark.skipif(HAS_TENSORBOARD, reason="tensorboard is installed")
def test_without_the_package_it_is_said_before_training() -> None:
    with pytest.raises(ConfigError, match="needs the package tensorboard"):
        curves.require_tensorboard()


@pytest.mark.skipif(not HAS_TENSORBOARD, reason="tensorboard is not installed")
def test_events_hold_every_step_and_epoch_by_rows_seen(
    dataset: Dataset, base: BaseModel, tmp_path: Path
) -> None:
    reader: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    config = FitConfig.model_validate(
        {"epochs": 2, "lora": {"top_layers": 1}, "frozen_products": "fp32", "tensorboard": True}
    )
    result = Run(tmp_path / "run", config, dataset, base.model, base.tokenizer).fit()
    events = reader.EventAccumulator(str(tmp_path / "run" / curves.EVENTS))
    events.Reload()
    log = run_log.lines(tmp_path / "run" / curves.LOG)
    losses = {e.step: e.value for e in events.Scalars("loss")}
    assert losses == pytest.approx({line["rows"]: line["loss"] for line in log if "loss" in line})
    held = [(e.step, e.value) for e in events.Scalars("validation_loss")]
    assert held == [
        (n * result.rows, pytest.approx(e.validation_loss)) for n, e in enumerate(result.epochs, 1)
    ]
