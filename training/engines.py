"""The run of either engine, by the one that a configuration names."""

from typing import TYPE_CHECKING, Any

from training.curriculum import StageOrder
from training.errors import ConfigError
from training.preference import Pairs
from training.states import StateCache
from training.train import Run

if TYPE_CHECKING:
    from training.trl_run import TrlRun


def make_run(
    order: StageOrder,
    model: Any,
    tokenizer: Any,
    *,
    pairs: Pairs | None = None,
    states: StateCache | None = None,
    pause_at: float | None = None,
) -> "Run | TrlRun":
    """A run that has not begun.

    Args:
        pairs: of the engine `trl`: train on these by DPO.
        states: of the engine `label`: hidden states of earlier runs.
        pause_at: of the engine `label`; the other one is not paused and goes on from its last checkpoint.

    Raises:
        ConfigError: TRL is not installed.
        DataError: the pairs do not fit.
    """
    common = (order.folder, order.config, order.dataset, model, tokenizer, order.tell)
    if order.config.engine == "label":
        return Run(*common, states=states, pause_at=pause_at, start=order.start)
    try:
        from training.trl_run import TrlRun
    except ModuleNotFoundError as why:
        raise ConfigError(f"engine = 'trl': {why}; install graduate[trl]") from why
    return TrlRun(*common, pairs=pairs, start=order.start)
