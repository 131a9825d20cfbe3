"""A run's curves from its log: the picture, and TensorBoard events for those who watch several runs side by side."""

import importlib.util
from pathlib import Path

from training import run_log
from training.errors import ConfigError
from training.plots import loss_curve

LOG, PICTURE, EVENTS = "log.jsonl", "curve.png", "tensorboard"


def require_tensorboard() -> None:
    """Nothing, when events can be written.

    Raises:
        ConfigError: the package is not installed; better said before training than after its first epoch.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("tensorboard = True: needs the package tensorboard (pip install tensorboard)")  # fmt: skip


def draw(run: Path, tensorboard: bool) -> None:
    """The curves of everything that the run's log holds so far."""
    loss_curve(run / LOG, run / PICTURE)
    if tensorboard:
        _events(run)


def _events(run: Path) -> None:
    """One file of events a pass, so that a run that goes on adds to what is there. Steps are rows seen."""
    from torch.utils.tensorboard import SummaryWriter

    lines = run_log.lines(run / LOG)
    if not lines:
        return
    with SummaryWriter(str(run / EVENTS)) as out:
        for line in lines:
            if line["epoch"] != lines[-1]["epoch"]:
                continue
            for name in ("loss", "train_loss", "validation_loss", "exact_share"):
                if name in line:
                    out.add_scalar(name, line[name], line["rows"])
