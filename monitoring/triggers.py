"""When a student should be distilled again: evidence in, events with their reasons out. Pure.

An event is due once for its subject: drift and disagreement once for an adapter version, labels once for every full
batch of them, a shutdown once for a model and its date. What has been told before is the store's business.
"""

import datetime
import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["drift", "disagreement", "labels", "shutdown"]


@dataclass(frozen=True, slots=True)
class TriggerRule:
    """When evidence is enough."""

    max_disagreement: float | None = None
    """Above this; None takes the route's own canary gate, and without one nothing is due."""
    min_labels: int = 200
    """New labels since the adapter was made, and every so many after."""
    shutdown_within_seconds: float = 90 * 86400.0
    """A teacher that goes sooner than this."""


@dataclass(frozen=True, slots=True)
class RouteEvidence:
    """What the monitor knows of one route.

    Attributes:
        adapter: `name/version` that the evidence is about.
        drifted: columns that drifted, with their adjusted p-values; empty when none did.
        disagreement_low: lower end of the interval of the disagreement, 0-1; None without pairs.
        gate: the route's canary limit on disagreement.
        labels: reviewed since the adapter was made.
        teacher: model name of the teacher; `shutdown` is when its backend says that it goes, None when it does not say.
    """

    route: str
    adapter: str | None = None
    drifted: dict[str, float] = field(default_factory=dict)
    disagreement: float | None = None
    disagreement_low: float | None = None
    pairs: int = 0
    gate: float | None = None
    labels: int = 0
    teacher: str | None = None
    shutdown: datetime.datetime | None = None


@dataclass(frozen=True, slots=True)
class Trigger:
    """A reason to train again. `id` is the same however often the same evidence is looked at."""

    id: str
    route: str
    kind: Kind
    subject: str
    reason: str
    evidence: dict[str, Any]


def due(rule: TriggerRule, found: RouteEvidence, now: datetime.datetime) -> tuple[Trigger, ...]:
    """The events that the evidence is enough for, a deadline first."""
    return tuple(
        trigger
        for trigger in (
            _shutdown(rule, found, now), _disagreement(rule, found), _drift(found), _labels(rule, found),
        )
        if trigger is not None
    )  # fmt: skip


def _trigger(
    found: RouteEvidence, kind: Kind, subject: str, reason: str, evidence: dict[str, Any]
) -> Trigger:
    digest = hashlib.sha256(f"{found.route}\0{kind}\0{subject}".encode()).hexdigest()[:32]
    return Trigger(digest, found.route, kind, subject, reason, evidence)


def _shutdown(rule: TriggerRule, found: RouteEvidence, now: datetime.datetime) -> Trigger | None:
    if found.shutdown is None or found.teacher is None:
        return None
    left = (found.shutdown - now).total_seconds()
    if left > rule.shutdown_within_seconds:
        return None
    day = found.shutdown.date().isoformat()
    when = f"in {left / 86400:.0f} days" if left > 0 else "already"
    return _trigger(
        found, "shutdown", f"{found.teacher} {day}",
        f"teacher {found.teacher} is shut down on {day}, {when}: label what is needed with it before, and train again",
        {"model": found.teacher, "shutdown_date": found.shutdown.isoformat(), "days_left": left / 86400},
    )  # fmt: skip


def _disagreement(rule: TriggerRule, found: RouteEvidence) -> Trigger | None:
    limit = rule.max_disagreement if rule.max_disagreement is not None else found.gate
    low, rate = found.disagreement_low, found.disagreement
    if limit is None or low is None or rate is None or low <= limit:
        return None
    return _trigger(
        found, "disagreement", found.adapter or "",
        f"{found.adapter or 'the student'} disagrees on {100 * rate:.1f} % of {found.pairs} pairs, "
        f"at least {100 * low:.1f} % by the interval, above {100 * limit:g} %",
        {"disagreement": rate, "low": low, "limit": limit, "pairs": found.pairs},
    )  # fmt: skip


def _drift(found: RouteEvidence) -> Trigger | None:
    if not found.drifted:
        return None
    columns = ", ".join(f"{name} (p = {p:.2g})" for name, p in sorted(found.drifted.items()))
    return _trigger(
        found, "drift", found.adapter or "",
        f"inputs are not those that {found.adapter or 'the student'} was trained on: {columns}",
        {"columns": dict(sorted(found.drifted.items()))},
    )  # fmt: skip


def _labels(rule: TriggerRule, found: RouteEvidence) -> Trigger | None:
    batches = found.labels // rule.min_labels
    if batches == 0:
        return None
    return _trigger(
        found, "labels", f"{found.adapter or ''} x{batches}",
        f"{found.labels} new labels since {found.adapter or 'the start'}, {rule.min_labels} are enough to train on",
        {"labels": found.labels, "min_labels": rule.min_labels},
    )  # fmt: skip
