"""What a canary does next: hold, wait, advance, promote or roll back, on evidence that may be looked at at any time. Pure.

A gate is *kept* when an always-valid test shows that its limit holds, *breached* when one shows that it does not, and
*open* in between: no evidence is not good evidence, so an open gate holds the canary, and at the cap of `give_up_after`
the rollout is held as inconclusive until people decide. The error is shared out over the gates: with confidence c
and m gates, each is tested at (1 - c) / m on either side.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from monitoring.sequential import (
    Interval,
    log_e_above,
    log_e_below,
    mean_sequence,
    quantile_sequence,
    rate_sequence,
)
from router.policy import Canary, RouteRollout

Action = Literal["hold", "wait", "advance", "promote", "rollback", "inconclusive"]
GateState = Literal["kept", "breached", "open"]
MOVES_UP: tuple[Action, ...] = ("advance", "promote")
RUNNING = ("canary", "waiting")
"""States in which the gates are looked at."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many of how many."""

    bad: int
    rows: int


@dataclass(frozen=True, slots=True)
class Scores:
    """What is not a count: latencies in seconds, feedback scores 0-1."""

    student_seconds: Sequence[float] = ()
    teacher_seconds: Sequence[float] = ()
    feedback: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen since the canary came to its step, of this adapter version only.

    The three counts are by segment; "" is the whole route. Latencies are seconds, feedback scores 0-1, of the whole route,
    and of each segment in `by_segment`.
    """

    disagreement: Mapping[str, Count] = field(default_factory=dict)
    guard_failures: Mapping[str, Count] = field(default_factory=dict)
    errors: Mapping[str, Count] = field(default_factory=dict)
    student_seconds: Sequence[float] = ()
    teacher_seconds: Sequence[float] = ()
    feedback: Sequence[float] = ()
    reviews: int = 0
    by_segment: Mapping[str, Scores] = field(default_factory=dict)

    def scores(self, segment: str) -> Scores:
        """Of one segment; "" is the whole route."""
        if segment == "":
            return Scores(self.student_seconds, self.teacher_seconds, self.feedback)
        return self.by_segment.get(segment, Scores())


@dataclass(frozen=True, slots=True)
class GateResult:
    """One gate's state and the figures behind it.

    `low` and `high` are the always-valid interval of what is gated (a share, a ratio, a mean score) at `alpha`; None where
    it has no end yet. `rows` are the requests, or scores, that it rests on.
    """

    name: str
    state: GateState
    detail: str
    rows: int = 0
    low: float | None = None
    high: float | None = None
    alpha: float = 0.0
    """The error that this gate may make on either side."""


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to the canary, and why."""

    action: Action
    state: RouteRollout
    reason: str
    gates: tuple[GateResult, ...]
    blocked: str | None = None
    """What alone keeps it from more traffic: `stale`, `away`, `approval`, or `confirm`."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """Why a canary is given no more traffic although its gates may be kept."""

    kind: Literal["stale", "away"]
    why: str


def frozen(
    rule: Canary, seconds_since_record: float, seconds_since_tick: float | None
) -> Freeze | None:
    """Whether the evidence is too old to go on.

    Args:
        seconds_since_record: since the route's newest record, or since the step began when there is none.
        seconds_since_tick: since the monitor looked last; None when it never did.
    """
    limit = rule.stale_after
    if seconds_since_record > limit:
        return Freeze(
            "stale",
            f"stale: no record for {seconds_since_record:.0f} s (stale_after {limit:.0f} s)",
        )
    if seconds_since_tick is not None and seconds_since_tick > limit:
        why = f"the monitor was away for {seconds_since_tick:.0f} s (stale_after {limit:.0f} s)"
        return Freeze("away", f"{why}; it goes on at the next tick")
    return None


def rate_gate(name: str, count: Count, limit: float, alpha: float) -> GateResult:
    """A share that must stay below its limit, by the one-sided beta-binomial e-processes in both directions."""
    shown = f"{count.bad} of {count.rows}"
    bounds = rate_sequence(count.bad, count.rows, alpha)
    figures = (count.rows, bounds.low, bounds.high, alpha)
    if limit in (0.0, 1.0):
        state: GateState = "kept" if limit == 1.0 else "breached" if count.bad else "open"
        return GateResult(name, state, shown, *figures)
    threshold = math.log(1 / alpha)
    breach = log_e_above(count.bad, count.rows, limit)
    keep = log_e_below(count.bad, count.rows, limit)
    state = "breached" if breach >= threshold else "kept" if keep >= threshold else "open"
    need = f"e = {math.exp(min(50.0, max(breach, keep))):.3g} of {1 / alpha:.0f}"
    return GateResult(name, state, f"{shown}, limit {100 * limit:g} %, {need}", *figures)


def _latency_gate(name: str, seen: Scores, max_ratio: float, alpha: float) -> GateResult:
    # Either verdict leans on one end of each sequence, and an end errs with alpha / 2.
    student = quantile_sequence(seen.student_seconds, 0.95, alpha)
    teacher = quantile_sequence(seen.teacher_seconds, 0.95, alpha)
    low = student.low / teacher.high if teacher.high > 0 else 0.0
    high = student.high / teacher.low if teacher.low > 0 else math.inf
    state: GateState = "breached" if low > max_ratio else "kept" if high <= max_ratio else "open"
    detail = f"ratio {low:.2f} to {high:.2f}, limit {max_ratio:g}"
    rows = min(len(seen.student_seconds), len(seen.teacher_seconds))
    end = high if math.isfinite(high) else None
    return GateResult(name, state, detail, rows, low, end, alpha)


def _feedback_gate(name: str, seen: Scores, minimum: float, alpha: float) -> GateResult:
    found: Interval = mean_sequence(seen.feedback, alpha)
    state: GateState = (
        "breached" if found.high < minimum else "kept" if found.low >= minimum else "open"
    )
    detail = f"mean {found.low:.2f} to {found.high:.2f}, limit {minimum:g}"
    return GateResult(name, state, detail, len(seen.feedback), found.low, found.high, alpha)


def _in(name: str, segment: str) -> str:
    return f"{name} in {segment}" if segment else name


def gates(rule: Canary, evidence: Evidence, segments: Sequence[str] = ()) -> tuple[GateResult, ...]:
    """Every gate that the rule sets, for the whole route and in each declared segment.

    The error is shared out over declared gates and segments, seen or not: a number that grew with traffic would move the
    bar while one looks. A segment without rows is an open gate.
    """
    limits, places = rule.gates, ("", *segments)
    none = Count(0, 0)
    rates = [
        (_in(name, segment), counts.get(segment, none), limit.max)
        for name, counts, limit in (
            ("disagreement", evidence.disagreement, limits.disagreement),
            ("guard_failures", evidence.guard_failures, limits.guard_failures),
            ("errors", evidence.errors, limits.errors),
        )
        if limit is not None
        for segment in places
    ]
    others = sum(limit is not None for limit in (limits.latency_p95, limits.feedback))
    alpha = (1 - rule.confidence) / max(1, len(rates) + others * len(places))
    results = [rate_gate(name, count, limit, alpha) for name, count, limit in rates]
    for segment in places:
        seen = evidence.scores(segment)
        if limits.latency_p95 is not None:
            ratio = limits.latency_p95.max_ratio
            results.append(_latency_gate(_in("latency_p95", segment), seen, ratio, alpha))
        if limits.feedback is not None:
            least = limits.feedback.min
            results.append(_feedback_gate(_in("feedback", segment), seen, least, alpha))
    return tuple(results)


def first_step(rule: Canary, version: int | None, now: str) -> RouteRollout:
    """The state of a canary that has just begun."""
    return RouteRollout(
        state="canary", share=rule.steps[0], step=0, version=version, since=now, step_since=now,
        evidence="begun",
    )  # fmt: skip


def next_step(
    rule: Canary,
    evidence: Evidence,
    state: RouteRollout,
    *,
    seconds_on_step: float,
    now: str,
    segments: Sequence[str] = (),
    freeze: Freeze | None = None,
) -> Step:
    """The move of a canary that is on `state`. Evidence and error begin anew on each step.

    A canary that waits for a person has kept its gates once, which is what the tests promise for; while it waits only a
    breach counts.

    Args:
        segments: the route's declared segments; the rate gates hold in each.
        seconds_on_step: since the canary came to its step.
        now: UTC time for the new state, ISO 8601.
        freeze: the evidence is too old; a breach rolls back all the same.
    """
    results = gates(rule, evidence, segments)
    if state.state not in RUNNING:
        return Step("hold", state, f"{state.state}: only people start it again", results)
    breached = [g for g in results if g.state == "breached"]
    if breached:
        return _breach(
            rule, state, "; ".join(f"{g.name}: {g.detail}" for g in breached), results, now
        )
    if freeze is not None:
        return Step("hold", state, freeze.why, results, freeze.kind)
    waiting = None
    if state.state == "canary":
        waiting = _why_wait(rule, results, evidence, seconds_on_step, state.step)
    if waiting is not None:
        cap = _cap_reached(rule, evidence, seconds_on_step)
        if cap is not None and any(g.state == "open" for g in results):
            why = f"inconclusive after {cap}: {waiting}"
            held = state.model_copy(update={"state": "inconclusive", "since": now, "evidence": why})
            return Step("inconclusive", held, why, results)
        return Step("hold", state, waiting, results)
    why = "; ".join(f"{g.name}: {g.detail}" for g in results)
    if rule.approval == "manual" and state.approved != state.step:
        if state.state == "waiting":
            return Step("hold", state, _UNAPPROVED, results, "approval")
        kept = state.model_copy(update={"state": "waiting", "since": now, "evidence": why})
        return Step("wait", kept, f"{_UNAPPROVED}: {why}", results, "approval")
    return _up(rule, state, why, results, now)


_UNAPPROVED = "gates are kept; a person must approve (graduate monitor rollout approve)"


def _breach(
    rule: Canary, state: RouteRollout, why: str, results: tuple[GateResult, ...], now: str
) -> Step:
    if rule.on_breach == "hold":
        held = state.model_copy(update={"state": "held", "since": now, "evidence": why})
        return Step("hold", held, f"breached, held: {why}", results)
    back = state.model_copy(
        update={"state": "rolled_back", "share": 0.0, "since": now, "evidence": why}
    )
    return Step("rollback", back, f"breached: {why}", results)


def _up(
    rule: Canary, state: RouteRollout, why: str, results: tuple[GateResult, ...], now: str
) -> Step:
    moved = {"since": now, "step_since": now, "evidence": why, "approved": None}
    if state.step >= len(rule.steps) - 1:
        done = state.model_copy(update={**moved, "state": "promoted", "share": 1.0})
        return Step("promote", done, why, results)
    share, step = rule.steps[state.step + 1], state.step + 1
    further = state.model_copy(update={**moved, "state": "canary", "share": share, "step": step})
    return Step("advance", further, why, results)


def _cap_reached(rule: Canary, evidence: Evidence, seconds_on_step: float) -> str | None:
    cap = rule.give_up_after
    asked = evidence.errors.get("", Count(0, 0)).rows
    if cap.requests is not None and asked >= cap.requests:
        return f"{asked} requests"
    return f"{seconds_on_step:.0f} s" if seconds_on_step >= cap.duration else None


def _why_wait(
    rule: Canary,
    results: tuple[GateResult, ...],
    evidence: Evidence,
    seconds_on_step: float,
    step: int,
) -> str | None:
    if not results:
        return "no gates set: nothing shows that the student may have more; set canary.gates"
    unsettled = [g for g in results if g.state == "open"]
    if unsettled:
        return "not enough evidence: " + "; ".join(f"{g.name}: {g.detail}" for g in unsettled)
    if seconds_on_step < rule.hold:
        return f"on this step for {seconds_on_step:.0f} s of {rule.hold:.0f} s"
    if step >= len(rule.steps) - 2 and evidence.reviews < rule.min_reviews:
        return f"{evidence.reviews} of {rule.min_reviews} reviews before the last step"
    return None
