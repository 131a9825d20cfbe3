"""A canary's move in a tick: gather, decide by `rollout`, ask who must confirm, write overlay and table. Holds no state.

What moves it is in `rollout`; what a person may do to it is in `orders`.
"""

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from monitoring import overlay, rollout, rollout_events, webhooks
from monitoring.evidence import Gathering
from monitoring.rollout_events import Event
from monitoring.store import FlagRow, ReviewRow, Store
from router import policy_file
from router.policy import Route, RouteRollout

CHANGED = "the rollout was changed by somebody else meanwhile; the next tick looks again"


@dataclass(frozen=True, slots=True)
class Standing:
    """One route's canary as a tick finds it.

    `adapter` is the version that the policy means now, `version` its number; None where the registry does not know it.
    """

    name: str
    route: Route
    state: RouteRollout | None
    adapter: str | None
    version: int | None
    digest: str
    """Of the policy and overlay under which it is looked at."""


def evidence_since(state: RouteRollout | None, now: datetime.datetime) -> datetime.datetime:
    """From when on records are evidence: when the canary came to its step."""
    if state is None:
        return now
    begun = state.step_since or state.since
    return datetime.datetime.fromisoformat(begun) if begun else now


def begins(standing: Standing) -> bool:
    """Whether a rollout of this adapter version has yet to begin."""
    state = standing.state
    return state is None or (standing.version is not None and state.version != standing.version)


def settle(store: Store, path: Path, policy: Path) -> None:
    """Moves that a process noted and did not live to settle are settled by what the overlay holds.

    Raises:
        PolicyError: policy or overlay do not hold.
    """
    left = rollout_events.pending_routes(store)
    if not left:
        return
    with overlay.locked(path):
        loaded = policy_file.load(policy, path)
        for name in left:
            route = loaded.policy.routes.get(name)
            state = loaded.rollouts.routes.get(name)
            rollout_events.settle(store, name, state, _told(route) if route else ())


def look(
    store: Store,
    path: Path,
    standing: Standing,
    gathered: Gathering,
    now: datetime.datetime,
    *,
    policy: Path,
    move: bool,
) -> dict[str, Any] | None:
    """What a canary does next, as the report says it; carried out when `move`. None for a route without a canary.

    Args:
        path: the overlay.
        policy: the policy file, read again under the overlay's lock.
    """
    if standing.route.mode != "canary":
        return None
    stamp = now.isoformat(timespec="milliseconds")
    if begins(standing):
        step = rollout.Step(
            "hold", rollout.first_step(standing.route.canary, standing.version, stamp), "begun", ()
        )
        return _carried_out(store, path, policy, standing, step, "begin", None, now, move=move)
    assert standing.state is not None  # or it would begin
    rule, state = standing.route.canary, standing.state
    seen = gathered.evidence(reviewed(store, standing.name, standing.adapter))
    since = evidence_since(state, now)
    step = rollout.next_step(
        rule, seen, state, seconds_on_step=(now - since).total_seconds(), now=stamp,
        segments=tuple(standing.route.segments), freeze=_freeze(store, standing, gathered, now),
    )  # fmt: skip
    return _carried_out(store, path, policy, standing, step, step.action, seen, now, move=move)


def reviewed(store: Store, route: str, adapter: str | None) -> int:
    """Records with an answer of this adapter version on which a person's word stands; of any version when it is None."""
    query = (
        select(func.count(ReviewRow.record_id.distinct()))
        .join(FlagRow, FlagRow.id == ReviewRow.flag_id)
        .where(ReviewRow.undone_at.is_(None), ReviewRow.route == route)
    )
    if adapter is not None:
        query = query.where(FlagRow.adapter == adapter)
    with store.session() as session:
        return session.scalar(query) or 0


def _freeze(
    store: Store, standing: Standing, gathered: Gathering, now: datetime.datetime
) -> rollout.Freeze | None:
    newest = max(gathered.last_at or 0.0, evidence_since(standing.state, now).timestamp())
    looked_at = store.latest_report_at(standing.name)
    at = now.timestamp()
    return rollout.frozen(
        standing.route.canary, at - newest, None if looked_at is None else at - looked_at
    )


def _carried_out(
    store: Store,
    path: Path,
    policy: Path,
    standing: Standing,
    step: rollout.Step,
    action: str,
    seen: rollout.Evidence | None,
    now: datetime.datetime,
    *,
    move: bool,
) -> dict[str, Any]:
    rule = standing.route.canary
    if not move or step.state == standing.state:
        return _shown(action, step)
    asked = seen.errors.get("", rollout.Count(0, 0)).rows if seen is not None else None
    event = Event(
        standing.name, now.timestamp(), action, step.state, step.state.evidence or step.reason,
        standing.adapter, policy_digest=standing.digest, rows=asked,
        alpha=sum(g.alpha for g in step.gates), gates=step.gates,
    )  # fmt: skip
    if step.action in rollout.MOVES_UP:
        refused = webhooks.confirm(rule.confirm, _asked(standing, event), event.key)
        if refused is not None:
            assert standing.state is not None  # what does not run yet does not move up
            held = rollout.Step("hold", standing.state, refused, step.gates, "confirm")
            return _shown("hold", held)
    if carry_out(store, path, policy, standing.state, event):
        return _shown(action, step)
    state = standing.state or step.state
    return _shown("hold", rollout.Step("hold", state, CHANGED, step.gates))


def carry_out(
    store: Store, path: Path, policy: Path, before: RouteRollout | None, event: Event
) -> bool:
    """The move is in the overlay and in the table; False when the route's state is no longer `before`.

    Raises:
        PolicyError: policy or overlay do not hold.
        OSError: the overlay cannot be written.
    """
    with overlay.locked(path):
        loaded = policy_file.load(policy, path)
        states = dict(loaded.rollouts.routes)
        if states.get(event.route) != before:
            return False
        rollout_events.propose(store, event)
        states[event.route] = event.state
        overlay.write_rollouts(path, loaded.rollouts.model_copy(update={"routes": states}))
        told = _told(loaded.policy.routes[event.route])
        rollout_events.settle(store, event.route, event.state, told)
    return True


def _told(route: Route) -> Sequence[str]:
    return [hook.url for hook in route.canary.notify]


def _asked(standing: Standing, event: Event) -> dict[str, Any]:
    """What a confirming webhook is asked: the move that would be made, and from where."""
    assert standing.state is not None  # only what runs moves up
    before, after = standing.state, event.state
    return {
        "key": event.key, "route": event.route, "at": event.at, "action": event.action,
        "adapter": event.adapter, "policy_digest": event.policy_digest,
        "from": {"state": before.state, "share": before.share, "step": before.step},
        "to": {"state": after.state, "share": after.share, "step": after.step},
        "evidence": event.reason, "rows": event.rows, "alpha": event.alpha,
        "gates": [asdict(gate) for gate in event.gates],
    }  # fmt: skip


def _shown(action: str, step: rollout.Step) -> dict[str, Any]:
    return {
        "action": action,
        "reason": step.reason,
        "state": step.state.model_dump(mode="json"),
        "gates": [asdict(g) for g in step.gates],
        "blocked": step.blocked,
    }
