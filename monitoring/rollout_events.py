"""The table of canaries' moves: a move is noted, carried out in the overlay, and settled. Knows no rule and no file.

The order is: note it as pending, write the overlay, settle. A process that dies in between leaves a pending row, and who
comes next settles it by what the overlay holds, so that each move is in the table once and none is that never was.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import select

from monitoring.rollout import GateResult
from monitoring.store import NoticeRow, RolloutEventRow, Store
from router.policy import RouteRollout

MONITOR = "monitor"
"""The actor of moves that no person made."""


@dataclass(frozen=True, slots=True)
class Event:
    """One move of a canary."""

    route: str
    at: float
    action: str
    state: RouteRollout
    reason: str
    adapter: str | None = None
    actor: str = MONITOR
    policy_digest: str | None = None
    rows: int | None = None
    """Requests that the student was asked for on the step that it leaves."""
    alpha: float = 0.0
    """Error spent on the decision: that of all gates together. A person's, and a beginning, spend none."""
    gates: tuple[GateResult, ...] = ()
    note: str | None = None

    @property
    def key(self) -> str:
        """The same for the same move, also when it is told twice."""
        told = f"{self.route}\0{self.action}\0{self.state.since}\0{self.state.model_dump_json()}"
        return hashlib.sha256(told.encode()).hexdigest()[:32]


FIELDS = (
    "key", "route", "at", "action", "state", "share", "step", "adapter", "actor", "note", "evidence", "rows", "alpha",
    "policy_digest", "gates",
)  # fmt: skip


def body(row: RolloutEventRow) -> dict[str, Any]:
    """A move as JSON values."""
    return {name: getattr(row, name) for name in FIELDS}


def propose(store: Store, event: Event) -> None:
    """Note a move that is about to be carried out."""
    state = event.state
    store.add_rollout_event(
        key=event.key, route=event.route, at=event.at, action=event.action, state=state.state,
        share=state.share, step=state.step, since=state.since, adapter=event.adapter,
        actor=event.actor, note=event.note, evidence=event.reason, rows=event.rows,
        alpha=event.alpha, policy_digest=event.policy_digest,
        gates=[asdict(g) for g in event.gates], pending=True,
    )  # fmt: skip


def pending_routes(store: Store) -> list[str]:
    """Routes with a move that was noted and not settled."""
    query = select(RolloutEventRow.route).where(RolloutEventRow.pending.is_(True)).distinct()
    with store.session() as session:
        return list(session.scalars(query))


def settle(
    store: Store, route: str, state: RouteRollout | None, tell: Sequence[str] = ()
) -> list[str]:
    """Keys of pending moves that led to `state`, the overlay's: they were carried out. The other pending ones go.

    Args:
        tell: addresses that are to be told of each.
    """
    pending = select(RolloutEventRow).where(
        RolloutEventRow.route == route, RolloutEventRow.pending.is_(True)
    )
    done: list[str] = []
    with store.session() as session:
        for row in session.scalars(pending):
            if state is None or (row.since, row.state, row.step) != (
                state.since, state.state, state.step,
            ):  # fmt: skip
                session.delete(row)
                continue
            row.pending = False
            key = row.key or ""
            session.add_all(
                NoticeRow(event_key=key, route=route, url=url, next_try_at=row.at)
                for url in dict.fromkeys(tell)
            )
            done.append(key)
        session.commit()
    return done
