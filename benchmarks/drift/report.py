"""Trials to the rows of two tables."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.drift.trials import WINDOWS, Found, Trial
from monitoring.intervals import clopper_pearson


def summary(found: Mapping[Trial, Found]) -> list[dict[str, Any]]:
    """A row for each window size and shift, those without a shift first."""
    groups: dict[tuple[str, int], list[Found]] = defaultdict(list)
    for trial, result in found.items():
        groups[trial.shift or "", trial.size].append(result)
    return [_row(shift, size, groups[shift, size]) for shift, size in sorted(groups)]


def _row(shift: str, size: int, results: Sequence[Found]) -> dict[str, Any]:
    alarmed = sum(result.window > 0 for result in results)
    low, high = clopper_pearson(alarmed, len(results))
    row: dict[str, Any] = {
        "shift": shift or "none",
        "rows": size,
        "trials": len(results),
        "alarmed_share": round(alarmed / len(results), 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }
    if shift:
        when = Counter(result.window for result in results)
        row["by_window"] = [when[number] for number in range(1, WINDOWS + 1)]
        row["holds"] = alarmed >= 0.95 * len(results)
    else:
        row |= _evidently(results, row["alarmed_share"])
        row["holds"] = alarmed <= 0.05 * len(results)
    return row


def _evidently(results: Sequence[Found], ours: float) -> dict[str, Any]:
    asked = [result for result in results if result.evidently_any is not None]
    if not asked:
        return {}
    some = sum(bool(result.evidently_any) for result in asked) / len(asked)
    half = sum(bool(result.evidently_half) for result in asked) / len(asked)
    # Where none of ours alarmed, one is counted: the ratio is at least that.
    ratio = some / max(1 / len(results), ours)
    return {
        "evidently_trials": len(asked),
        "evidently_any": round(some, 4),
        "evidently_half": round(half, 4),
        "evidently_ratio": round(ratio, 1),
    }


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as a table; a cell is empty where a row has no such figure."""
    listed = list(rows)
    names = list(dict.fromkeys(name for row in listed for name in row))
    lines = [names, ["---"] * len(names)]
    lines += [[str(row.get(name, "")) for name in names] for row in listed]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
