"""Whether inputs have changed: evidently measures columns and writes the report, the decision is ours.

evidently's own thresholds raise false alarms in 17-80 % of windows without drift, depending on their size. So each
column gets an explicit test with a p-value (Kolmogorov-Smirnov for numbers; a permutation test of the chi-square for classes,
because evidently's divides by zero on a class that the reference lacks), and Holm's correction over the columns keeps
the chance that *any* of them alarms falsely at `alarm_rate` a window.

Words of the reference cannot be unknown in the reference: half of it gives the vocabulary, the other half is compared.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from monitoring.descriptors import NUMERIC, Vocabulary, describe
from monitoring.intervals import holm
from monitoring.windows import Row

with warnings.catch_warnings():
    # evidently 0.7.23 touches numpy.core, which numpy 2 has renamed.
    warnings.simplefilter("ignore", DeprecationWarning)
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

MIN_REFERENCE_ROWS, MIN_CURRENT_ROWS = 60, 30
PERMUTATIONS = 999


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """One column: its test's p-value, adjusted over all columns, and whether it alarms."""

    name: str
    method: str
    p_value: float
    adjusted: float
    drifted: bool
    reference_mean: float | None
    current_mean: float | None


@dataclass(frozen=True, slots=True)
class DriftReport:
    """One comparison of windows. `enough` is False when there are too few rows to say anything; `why_not` says so."""

    enough: bool
    why_not: str | None
    reference_rows: int
    current_rows: int
    alarm_rate: float
    columns: tuple[ColumnDrift, ...] = ()
    drifted: bool = False
    outliers: tuple[str, ...] = ()
    """Ids of the current rows that look least like the reference, the strangest first."""
    html: str | None = None


def measure(
    reference: Sequence[Row],
    current: Sequence[Row],
    *,
    html_path: Path | None = None,
    seed: int = 0,
    alarm_rate: float = 0.05,
) -> DriftReport:
    """Compare two windows of inputs.

    Args:
        html_path: where evidently's report goes; None writes none.
        alarm_rate: chance that a window without drift alarms.
    """
    why_not = None
    if len(reference) < MIN_REFERENCE_ROWS:
        why_not = f"not enough reference rows: {len(reference)}, wanted {MIN_REFERENCE_ROWS}"
    elif len(current) < MIN_CURRENT_ROWS:
        why_not = f"not enough current rows: {len(current)}, wanted {MIN_CURRENT_ROWS}"
    if why_not is not None:
        return DriftReport(False, why_not, len(reference), len(current), alarm_rate)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(reference))
    known = [reference[i] for i in order[: len(order) // 2]]
    compared = [reference[i] for i in order[len(order) // 2 :]]
    vocabulary = Vocabulary.of([row.text for row in known])
    before, now = _frame(compared, vocabulary), _frame(current, vocabulary)
    p_values, html = _evidently(before, now, alarm_rate, html_path)
    methods = dict.fromkeys(NUMERIC, "Kolmogorov-Smirnov")
    for name in ("language", "answer_class"):
        p_values[name] = class_mix_p_value(list(before[name]), list(now[name]), generator)
        methods[name] = "chi-square, permuted"
    names = list(p_values)
    adjusted = holm([p_values[n] for n in names])
    columns = tuple(
        ColumnDrift(
            name,
            methods[name],
            p_values[name],
            value,
            value < alarm_rate,
            float(before[name].mean()) if name in NUMERIC else None,
            float(now[name].mean()) if name in NUMERIC else None,
        )
        for name, value in zip(names, adjusted, strict=True)
    )
    strange = now["bits_per_word"].to_numpy().argsort()[::-1][:20]
    return DriftReport(
        enough=True,
        why_not=None,
        reference_rows=len(reference),
        current_rows=len(current),
        alarm_rate=alarm_rate,
        columns=tuple(sorted(columns, key=lambda c: c.adjusted)),
        drifted=any(c.drifted for c in columns),
        outliers=tuple(current[int(i)].id for i in strange),
        html=html,
    )


def _frame(rows: Sequence[Row], vocabulary: Vocabulary) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {**describe(row.text, vocabulary), "answer_class": row.answer_class or "none"}
            for row in rows
        ]
    )


def _evidently(
    before: pd.DataFrame, now: pd.DataFrame, alarm_rate: float, html_path: Path | None
) -> tuple[dict[str, float], str | None]:
    """evidently's p-value of each numeric column, and where its report is."""
    definition = DataDefinition(
        numerical_columns=list(NUMERIC), categorical_columns=["language", "answer_class"]
    )
    metrics: list[Any] = [
        ValueDrift(column=name, method="ks", threshold=alarm_rate / len(NUMERIC))
        for name in NUMERIC
    ]
    if html_path is not None:
        metrics += [
            ValueDrift(column=name, method="jensenshannon", threshold=0.2)
            for name in ("language", "answer_class")
        ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        snapshot = Report(metrics).run(
            Dataset.from_pandas(now, data_definition=definition),
            Dataset.from_pandas(before, data_definition=definition),
        )
        if html_path is not None:
            html_path.parent.mkdir(parents=True, exist_ok=True)
            snapshot.save_html(str(html_path))
    found = {m["config"]["column"]: m["value"] for m in snapshot.dict()["metrics"]}
    values = {name: float(found[name]) for name in NUMERIC}
    # A column that is constant in both windows has no p-value; it has not moved.
    return {n: 1.0 if np.isnan(p) else p for n, p in values.items()}, (
        str(html_path) if html_path else None
    )


def class_mix_p_value(
    before: Sequence[str], now: Sequence[str], generator: np.random.Generator
) -> float:
    """Permutation p-value of the chi-square between two class mixes: exact for any counts, new classes included.

    Shuffling rows and counting those that fall into the first window is a draw from the multivariate hypergeometric.
    """
    names = sorted({*before, *now})
    if len(names) < 2 or not before or not now:
        return 1.0
    first, both = Counter(before), Counter([*before, *now])
    total = np.array([both[name] for name in names])
    shuffled = generator.multivariate_hypergeometric(total, len(before), size=PERMUTATIONS)
    observed = np.array([[first[name] for name in names]])
    more = int((_chi_square(shuffled, total) >= _chi_square(observed, total) - 1e-9).sum())
    return (more + 1) / (PERMUTATIONS + 1)


def _chi_square(left: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Of each row of `left`: how many of each class's `total` are in the first window."""
    expected = total * (left.sum(axis=1, keepdims=True) / total.sum())
    gap = (left - expected) ** 2
    return np.asarray((gap / expected + gap / (total - expected)).sum(axis=1))
