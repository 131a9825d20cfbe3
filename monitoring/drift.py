"""Whether inputs have changed: the decision is ours, evidently measures distances and writes the report.

evidently's own thresholds raise false alarms in 17-80 % of windows without drift, depending on their size. So all
columns are tested together by shuffling rows between the windows (`monitoring.permutation`): the chance that *any* of them
alarms falsely is at most `alarm_rate` a window, whatever the windows' sizes. What is looked at: lengths and form, language,
templates, words the reference does not know, where texts lie among the reference's topics, and the mix of answers.

Words of the reference cannot be unknown in the reference: a third of it says what is familiar, the rest is compared.
"""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring.descriptors import CLASSES, NUMERIC, Reference, describe, templates_of
from monitoring.permutation import joint_tests
from monitoring.windows import Row

ALARM_RATE = 0.02
"""Of windows without drift, by default. Of 200 such windows more than 10 then alarm in one run of 400."""
MIN_REFERENCE_ROWS, MIN_CURRENT_ROWS = 60, 30
MAX_REFERENCE_ROWS = 10_000
"""Of a larger reference so many rows are drawn: more of them make no test sharper that a window of hundreds is one half of."""
FAMILIAR_SHARE = 1 / 3
SHARP_SHUFFLES = 9_999
"""Of a window that alarms, for the evidence over time: p-values go down to some 11 / 10,000."""
OUTLIERS = 20
METHODS = {
    "number": "Anderson-Darling, permuted",
    "class": "chi-square, permuted",
    "topic": "mean shift of topics, permuted",
}
Columns = dict[str, NDArray[np.generic]]


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
    moved_share: float | None = None
    """Largest gap of the distribution functions, or half the sum of the class gaps: at least so many rows are others."""
    distance: float | None = None
    """evidently's: Wasserstein distance in units of the reference's spread, or Jensen-Shannon; None without its report."""


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
    """Ids of the current rows that moved most in the columns that alarm; without an alarm, of the strangest words."""
    html: str | None = None
    p_value: float | None = None
    """Of the window, all columns together; None without enough rows."""


def measure(
    reference: Sequence[Row],
    current: Sequence[Row],
    *,
    html_path: Path | None = None,
    seed: int = 0,
    alarm_rate: float = ALARM_RATE,
) -> DriftReport:
    """Compare two windows of inputs.

    Args:
        html_path: where evidently's report goes; None writes none and leaves evidently alone.
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
    columns, begin = columns_of(reference, current, generator)
    found = joint_tests(columns, begin, generator)
    p_value = min(test.adjusted for test in found.values())
    if p_value <= alarm_rate:
        # Anew by more shuffles: 2,000 cannot tell rare from very rare. To be at most t below the rate, both must be small.
        sharper = joint_tests(columns, begin, generator, SHARP_SHUFFLES)
        p_value = min(test.adjusted for test in sharper.values())
    alarming = [name for name, test in found.items() if test.adjusted <= alarm_rate]
    distances = _evidently(columns, begin, html_path) if html_path is not None else {}
    shown = [
        _column(name, columns[name], begin, test.p_value, test.adjusted, alarm_rate, distances)
        for name, test in found.items()
    ]
    strange = _moved_most(columns, begin, alarming or ["bits_per_word"])
    return DriftReport(
        enough=True,
        why_not=None,
        reference_rows=len(reference),
        current_rows=len(current),
        alarm_rate=alarm_rate,
        columns=tuple(sorted(shown, key=lambda c: (c.adjusted, c.p_value))),
        drifted=bool(alarming),
        outliers=tuple(current[int(i)].id for i in strange),
        html=str(html_path) if html_path else None,
        p_value=p_value,
    )


def columns_of(
    reference: Sequence[Row], current: Sequence[Row], generator: np.random.Generator
) -> tuple[Columns, int]:
    """All that is compared, and how many rows of it are the reference's, which come first.

    Returns:
        By name: numbers and classes `[rows]`, topics `[rows, dimensions]`. Familiar rows are not among them.
    """
    order = generator.permutation(len(reference))[:MAX_REFERENCE_ROWS]
    cut = int(len(order) * FAMILIAR_SHARE)
    familiar = Reference.of([reference[i].text for i in order[:cut]])
    compared = [reference[i] for i in order[cut:]]
    return _columns([*compared, *current], familiar), len(compared)


def _columns(rows: Sequence[Row], familiar: Reference) -> Columns:
    described = [describe(row.text, familiar.vocabulary) for row in rows]
    columns: Columns = {
        name: np.array([row[name] for row in described], dtype=np.float64) for name in NUMERIC
    }
    columns["language"] = np.array([row["language"] for row in described])
    # Templates are counted over both windows: a new one is in no reference, and shuffles do not change the count.
    columns["template"] = np.array(templates_of([row.text for row in rows]))
    columns["answer_class"] = np.array([row.answer_class or "none" for row in rows])
    columns["topics"] = familiar.topics.place([row.text for row in rows])
    return columns


def _column(
    name: str,
    values: NDArray[Any],
    begin: int,
    p_value: float,
    adjusted: float,
    alarm_rate: float,
    distances: Mapping[str, float],
) -> ColumnDrift:
    is_number = name in NUMERIC
    kind = "topic" if values.ndim == 2 else "number" if is_number else "class"
    return ColumnDrift(
        name=name,
        method=METHODS[kind],
        p_value=p_value,
        adjusted=adjusted,
        drifted=adjusted <= alarm_rate,
        reference_mean=float(values[:begin].mean()) if is_number else None,
        current_mean=float(values[begin:].mean()) if is_number else None,
        moved_share=None if kind == "topic" else _moved_share(values, begin),
        distance=distances.get(name),
    )


def _moved_share(values: NDArray[Any], begin: int) -> float:
    """How many rows are others at the least: the Kolmogorov-Smirnov distance, or the total variation of classes."""
    names, codes = np.unique(values, return_inverse=True)
    before, now = (
        np.bincount(part, minlength=len(names)) / len(part)
        for part in (codes[:begin], codes[begin:])
    )
    if values.dtype.kind == "f":
        return float(np.abs((before - now).cumsum()).max())
    return float(np.abs(before - now).sum() / 2)


def _moved_most(columns: Columns, begin: int, names: Sequence[str]) -> NDArray[np.intp]:
    """Places in the current window of the rows that the current window has more of than the reference, most telling first.

    Each column is cut into twenty groups; a row's score is the sum of the log ratios of its groups' shares.
    """
    rows = len(next(iter(columns.values())))
    score = np.zeros(rows - begin)
    for name in names:
        values: NDArray[Any] = columns[name]
        if values.ndim == 2:
            # Along the direction in which the windows' means differ.
            direction = values[begin:].mean(axis=0) - values[:begin].mean(axis=0)
            values = values @ (direction / (values.var(axis=0) + 1e-12))
        if values.dtype.kind == "f":
            values = np.searchsorted(np.quantile(values, np.linspace(0, 1, 21)[1:-1]), values)
        _, codes = np.unique(values, return_inverse=True)
        before, now = (
            (np.bincount(part, minlength=codes.max() + 1) + 1) / (len(part) + 1)
            for part in (codes[:begin], codes[begin:])
        )
        score += np.log(now / before)[codes[begin:]]
    # Among equals the one of the strangest words comes first.
    words: NDArray[Any] = columns["bits_per_word"][begin:]
    return np.lexsort((-words, -score))[:OUTLIERS]


def _evidently(columns: Columns, begin: int, html_path: Path) -> dict[str, float]:
    """evidently's distance of each column; its report is written to `html_path`."""
    import pandas as pd

    with warnings.catch_warnings():
        # evidently 0.7.23 touches numpy.core, which numpy 2 has renamed.
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import ValueDrift

        classes = [*CLASSES, "answer_class"]
        definition = DataDefinition(numerical_columns=list(NUMERIC), categorical_columns=classes)
        frame = pd.DataFrame({name: columns[name] for name in (*NUMERIC, *classes)})
        metrics: list[Any] = [
            *(ValueDrift(column=name, method="wasserstein", threshold=0.1) for name in NUMERIC),
            *(ValueDrift(column=name, method="jensenshannon", threshold=0.1) for name in classes),
        ]
        snapshot = Report(metrics).run(
            Dataset.from_pandas(frame[begin:], data_definition=definition),
            Dataset.from_pandas(frame[:begin], data_definition=definition),
        )
        html_path.parent.mkdir(parents=True, exist_ok=True)
        snapshot.save_html(str(html_path))
    found = {m["config"]["column"]: float(m["value"]) for m in snapshot.dict()["metrics"]}
    # A column that is constant in both windows has no distance in units of its spread.
    return {name: value for name, value in found.items() if np.isfinite(value)}


def class_mix_p_value(
    before: Sequence[str], now: Sequence[str], generator: np.random.Generator
) -> float:
    """Permutation p-value of the chi-square between two class mixes: exact for any counts, new classes included."""
    if len(Counter([*before, *now])) < 2 or not before or not now:
        return 1.0
    found = joint_tests({"class": np.array([*before, *now])}, len(before), generator)
    return found["class"].p_value
