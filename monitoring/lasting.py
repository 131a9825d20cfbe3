"""Drift over time: is it surely no chance, however often one looks? Evidence of windows that share no row is added up.

The test of one window (`monitoring.drift`) alarms falsely in 2 % of windows, so among many windows it will. Here each window's p-value
becomes an e-value, kappa * p^(kappa - 1) (Vovk and Wang 2021), whose mean is at most 1 without drift, and a Shiryaev-Roberts
detector adds them up: R' = (R + 1) * e, an alarm when R reaches `MEAN_WINDOWS`. Then at least so many windows pass on average before a false
alarm (Shin, Ramdas and Rinaldo 2022), however p-values depend on the past, as long as each is valid given it.

What it does not promise: all windows meet one reference, and one that is an unlucky draw itself is told from the traffic sooner or later.
`python -m benchmarks.drift.streams` measures that. A new adapter version, whose reference is another, begins anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select

from monitoring.drift import DriftReport
from monitoring.store import DriftWindowRow, Store
from monitoring.windows import Row

KAPPA = 0.3
MEAN_WINDOWS = 1_000
"""Windows between false alarms on average, at the least."""
EVERY_SECONDS = 900.0
"""At most one window of a quarter of an hour counts: 672 a week, so that 1,000 windows are ten days at the least."""
MOST = 10 * MEAN_WINDOWS
"""Evidence is capped, so that it goes back within some windows when the traffic does."""


@dataclass(frozen=True, slots=True)
class Lasting:
    """What the windows up to now say together."""

    windows: int
    """That were counted."""
    evidence: float
    wanted: float = MEAN_WINDOWS
    is_drift: bool = False


def e_value(p_value: float) -> float:
    """Evidence of one window; without drift its mean is at most 1."""
    return float(KAPPA * p_value ** (KAPPA - 1))


def added(evidence: float, p_value: float) -> float:
    """The detector after one more window."""
    return min(MOST, (evidence + 1) * e_value(p_value))


def count_window(
    store: Store, route: str, subject: str, current: Sequence[Row], report: DriftReport
) -> Lasting:
    """Count the window, unless it shares a row or a quarter of an hour with the last one that counted.

    A tick that runs again over the same records counts nothing twice.

    Args:
        subject: what the reference is of: evidence against another reference is other evidence.
    """
    last = _last(store, route, subject)
    number, evidence = (last.number, last.evidence) if last else (0, 0.0)
    if report.p_value is not None and current:
        begin, end = min(row.at for row in current), max(row.at for row in current)
        if last is None or (begin > last.end_at and end >= last.end_at + EVERY_SECONDS):
            number, evidence = number + 1, added(evidence, report.p_value)
            store.add_drift_window(
                {
                    "route": route, "subject": subject, "number": number, "end_at": end,
                    "num_rows": len(current), "p_value": report.p_value, "evidence": evidence,
                }
            )  # fmt: skip
    return Lasting(number, evidence, is_drift=evidence >= MEAN_WINDOWS)


def _last(store: Store, route: str, subject: str) -> DriftWindowRow | None:
    mine = (DriftWindowRow.route == route, DriftWindowRow.subject == subject)
    query = select(DriftWindowRow).where(*mine).order_by(DriftWindowRow.number.desc()).limit(1)
    with store.session() as session:
        return session.scalar(query)
