"""What a person may do to a canary: approve a step, abort, resume. `approve`, `abort` and `resume` are pure; `order` carries out."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from monitoring import canary
from monitoring.errors import RolloutRefused, UnknownRoute
from monitoring.rollout import RUNNING
from monitoring.rollout_events import Event
from monitoring.store import Store
from router import policy_file
from router.policy import Canary, Route, RouteRollout
from serving.registry import Registry, RegistryError

OrderWord = Literal["approve", "abort", "resume"]
ORDERS: tuple[OrderWord, ...] = get_args(OrderWord)
TRIES = 3
"""A tick may move the canary between our look and our change."""


def approve(rule: Canary, state: RouteRollout | None, now: str) -> RouteRollout:
    """The canary may leave the step that it is on, once its gates are kept; the next tick moves it.

    Raises:
        RolloutRefused: nothing waits for an approval.
    """
    if state is None or state.state not in RUNNING:
        raise RolloutRefused(f"nothing to approve: the rollout is {_word(state)}")
    if rule.approval != "manual":
        raise RolloutRefused("nothing to approve: canary.approval is automatic in the policy")
    if state.approved == state.step:
        raise RolloutRefused(f"step {state.step + 1} of {len(rule.steps)} is approved already")
    return state.model_copy(update={"approved": state.step, "since": now})


def abort(rule: Canary, state: RouteRollout | None, now: str) -> RouteRollout:
    """The teacher answers everything; only `resume`, or another adapter version, starts the student again.

    Raises:
        RolloutRefused: it is rolled back already.
    """
    if state is not None and state.state == "rolled_back":
        raise RolloutRefused("nothing to abort: the rollout is rolled back already")
    before = state or RouteRollout(share=0.0)
    return before.model_copy(
        update={"state": "rolled_back", "share": 0.0, "since": now, "approved": None}
    )


def resume(rule: Canary, state: RouteRollout | None, now: str) -> RouteRollout:
    """A canary that stood still goes on: a rolled back one from the first step, others from their own.

    Its evidence begins anew, and with it the error that its gates may make.

    Raises:
        RolloutRefused: it does not stand still.
    """
    if state is None or state.state not in ("held", "inconclusive", "rolled_back"):
        raise RolloutRefused(f"nothing to resume: the rollout is {_word(state)}")
    step = 0 if state.state == "rolled_back" else min(state.step, len(rule.steps) - 1)
    return state.model_copy(
        update={
            "state": "canary", "share": rule.steps[step], "step": step, "since": now,
            "step_since": now, "approved": None,
        }
    )  # fmt: skip


def _word(state: RouteRollout | None) -> str:
    return "not begun" if state is None else state.state.replace("_", " ")


_CHANGES: dict[OrderWord, Callable[[Canary, RouteRollout | None, str], RouteRollout]] = {
    "approve": approve, "abort": abort, "resume": resume,
}  # fmt: skip


def order(
    store: Store,
    policy: Path,
    overlay: Path,
    adapters: Path,
    route: str,
    word: str,
    *,
    by: str,
    note: str | None = None,
    now: datetime.datetime,
) -> Event:
    """Carry out a person's word about one route, in the overlay and in the table.

    Args:
        adapters: the registry, to know which version an abort before the first tick is about.

    Raises:
        UnknownRoute: the policy has no such route with a student.
        RolloutRefused: an unknown word, nobody's name, or nothing to do it to.
        PolicyError: policy or overlay do not hold.
    """
    chosen = next((w for w in ORDERS if w == word), None)
    if chosen is None:
        raise RolloutRefused(f"order {word!r}: allowed: {', '.join(ORDERS)}")
    if not by.strip():
        raise RolloutRefused("by: allowed: a name; the table says who moved a canary")
    for _ in range(TRIES):
        loaded = policy_file.load(policy, overlay)
        spec = loaded.policy.routes.get(route)
        if spec is None or spec.student is None:
            known = [n for n, r in loaded.policy.routes.items() if r.student is not None]
            allowed = ", ".join(known) or "none in the policy has a student"
            raise UnknownRoute(f"route {route!r}: allowed: {allowed}")
        if spec.mode != "canary":
            raise RolloutRefused(
                f"route {route!r} has mode {spec.mode}: rollouts move in mode canary only; edit the policy"
            )
        before = loaded.rollouts.routes.get(route)
        state = _CHANGES[chosen](spec.canary, before, now.isoformat(timespec="milliseconds"))
        if state.version is None:
            state = state.model_copy(update={"version": _version(spec, adapters)})
        said = f"{chosen} by {by.strip()}" + (f": {note}" if note else "")
        state = state.model_copy(update={"evidence": said})
        adapter = None if state.version is None else f"{spec.student.adapter}/{state.version}"
        event = Event(
            route, now.timestamp(), chosen, state, said, adapter, by.strip(), loaded.digest,
            note=note,
        )  # fmt: skip
        if canary.carry_out(store, overlay, policy, before, event):
            return event
    raise RolloutRefused("the rollout moves at this moment; look again and repeat")


def _version(route: Route, adapters: Path) -> int | None:
    """The version that the policy means now; None where the registry does not know it."""
    assert route.student is not None  # order() has looked
    try:
        return (
            Registry(adapters).resolve(f"{route.student.adapter}/{route.student.version}").version
        )
    except RegistryError:
        return None
