"""One trial: windows made, tested by the monitor and by evidently's defaults."""

import random
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.drift.texts import Texts, planted, window
from monitoring.descriptors import NUMERIC
from monitoring.drift import ALARM_RATE, columns_of
from monitoring.permutation import joint_tests

WINDOWS = 3
"""In which a planted shift should be detected."""
CLASSES = ("language", "template", "answer_class")


@dataclass(frozen=True, slots=True)
class Trial:
    """What is tested. `shift` None plants nothing."""

    size: int
    """Rows of a current window."""
    shift: str | None
    number: int

    @property
    def key(self) -> str:
        """Its name among results."""
        return f"{self.size}/{self.shift or 'none'}/{self.number}"


@dataclass(frozen=True, slots=True)
class Found:
    """What a trial found."""

    window: int
    """The first window that alarmed, from 1; 0 when none did. Without a shift there is only one."""
    evidently_any: bool | None = None
    """By evidently's defaults a column of the first window is drifted; None where it was not asked."""
    evidently_half: bool | None = None
    """By evidently's defaults at least half of the columns are, which its preset calls drift of the dataset."""


def run(trial: Trial, pools: tuple[Texts, Texts], reference_rows: int, evidently: bool) -> Found:
    """Draw a reference and its windows, and test them until one alarms.

    Args:
        pools: the texts that windows are drawn from, and texts of another kind.
        evidently: ask evidently's defaults about the first window too.
    """
    draws = random.Random(trial.key)
    reference = window(pools[0], reference_rows, draws)
    theirs: list[bool] = []
    for number in range(1, 1 + (1 if trial.shift is None else WINDOWS)):
        current = window(pools[0], trial.size, draws)
        if trial.shift is not None:
            current = planted(current, trial.shift, draws, pools)
        generator = np.random.default_rng(trial.number)
        columns, begin = columns_of(reference, current, generator)
        if evidently and number == 1:
            theirs = _evidently(columns, begin)
        tests = joint_tests(columns, begin, generator)
        if any(test.adjusted <= ALARM_RATE for test in tests.values()):
            return Found(number, *theirs)
    return Found(0, *theirs)


def _evidently(columns: dict[str, Any], begin: int) -> list[bool]:
    """`DataDriftPreset` as it comes, on the same columns but the topics, which it has no column for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        definition = DataDefinition(
            numerical_columns=list(NUMERIC), categorical_columns=list(CLASSES)
        )
        frame = pd.DataFrame({name: columns[name] for name in (*NUMERIC, *CLASSES)})
        snapshot = Report([DataDriftPreset()]).run(
            Dataset.from_pandas(frame[begin:], data_definition=definition),
            Dataset.from_pandas(frame[:begin], data_definition=definition),
        )
    counted = next(
        m["value"] for m in snapshot.dict()["metrics"] if "DriftedColumnsCount" in m["metric_name"]
    )
    return [counted["count"] > 0, counted["share"] >= 0.5]
