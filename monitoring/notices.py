"""Telling others of canaries' moves: who has not been told yet, when it is tried again, when it is given up.

What is said and how is in `webhooks`. A move is told after it was carried out and never holds one up; those to one address
are told in their order. A process that dies after the answer and before it is written down tells it again, under the same id.
"""

from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select

from monitoring import webhooks
from monitoring.rollout_events import body
from monitoring.store import NoticeRow, RolloutEventRow, Store
from router.policy import Notify, Policy

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 15.0, 1800.0
GIVE_UP_SECONDS = 2 * 86400.0
"""A move that nobody takes for so long is told no more; the table still has it, with the last error."""
THREADS = 8
Outcome = Literal["sent", "again", "given up"]


@dataclass(frozen=True, slots=True)
class Delivered:
    """What one pass did."""

    sent: int
    failed: int


def deliver(store: Store, policy: Policy, now: float) -> Delivered:
    """One try at each address that is due."""
    left = select(NoticeRow).where(NoticeRow.next_try_at.is_not(None)).order_by(NoticeRow.id)
    with store.session() as session:
        waiting = list(session.scalars(left))
        keys = {notice.event_key for notice in waiting}
        found = session.scalars(select(RolloutEventRow).where(RolloutEventRow.key.in_(keys)))
        events = {row.key: row for row in found}
    if not waiting:
        return Delivered(0, 0)
    by_address: dict[tuple[str, str], list[NoticeRow]] = defaultdict(list)
    for notice in waiting:
        by_address[notice.route, notice.url].append(notice)

    def tell_all(address: tuple[str, str]) -> list[Outcome]:
        hook = _hook(policy, *address)
        done: list[Outcome] = []
        for notice in by_address[address]:
            if notice.next_try_at is not None and notice.next_try_at > now:
                break  # the ones behind it wait too, or they would overtake it
            done.append(_tell(store, hook, notice, events.get(notice.event_key), now))
            if done[-1] == "again":
                break
        return done

    with ThreadPoolExecutor(THREADS) as pool:
        results = Counter(one for each in pool.map(tell_all, by_address) for one in each)
    return Delivered(results["sent"], results["again"] + results["given up"])


def _hook(policy: Policy, route: str, url: str) -> Notify | None:
    hooks = policy.routes[route].canary.notify if route in policy.routes else ()
    return next((hook for hook in hooks if hook.url == url), None)


def _tell(
    store: Store, hook: Notify | None, notice: NoticeRow, event: RolloutEventRow | None, now: float
) -> Outcome:
    """Tell one, and write down how it went."""
    why: str | None = "no longer in the policy"
    given_up = hook is None or event is None
    if hook is not None and event is not None:
        why = webhooks.tell(hook, body(event), notice.event_key, now)
        given_up = why is not None and now - event.at > GIVE_UP_SECONDS
    wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0**notice.attempts)
    with store.session() as session:
        row = session.get(NoticeRow, notice.id)
        assert row is not None  # notices are never deleted
        row.attempts += 1
        row.error = why
        row.sent_at = now if why is None else None
        row.next_try_at = None if why is None or given_up else now + wait
        session.commit()
    return "sent" if why is None else "given up" if given_up else "again"
