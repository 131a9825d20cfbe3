"""Which backend answers a request, who is asked beside it, and why. Pure: the policy, the request and one draw decide.

A record keeps the draw and the policy's digest, so every decision can be computed again. One draw gives several
independent numbers (arm, shadow, audit, noise, log) by hashing it with the use's name.
"""

import functools
import re
from hashlib import blake2b

import msgspec

from router.difficulty import not_easy
from router.policy import DEFAULT, Match, Mode, Policy, Route
from router.policy_file import LoadedPolicy
from router.records import Role
from router.wire import RequestView


class Decision(msgspec.Struct, frozen=True):
    """How one request is answered.

    `arm` is who answers first, `propensity` the probability that this arm had; `shadow` asks the student unseen beside
    the teacher, `audit` the teacher unseen beside the student, `noise` the teacher a second time. Made by
    position on the way of every request: by name msgspec takes ten times as long.
    """

    route: str
    mode: Mode
    arm: Role
    reason: str
    draw: float
    propensity: float = 1.0
    shadow: bool = False
    audit: bool = False
    noise: bool = False
    shadow_share: float = 0.0
    segment: str | None = None
    cascade_min_confidence: float | None = None
    log: bool = True


def drawn(draw: float, use: str, share: float) -> bool:
    """Whether a share's lot falls on this draw."""
    return share >= 1 or (share > 0 and uniform(draw, use) < share)


def uniform(draw: float, use: str) -> float:
    """A number from 0 to 1 that depends on the draw and its use alone; different uses are independent."""
    return _hashed(f"{draw!r}:{use}")


def _hashed(text: str) -> float:
    return int.from_bytes(blake2b(text.encode(), digest_size=7).digest()) / 2**56


@functools.lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def matches(match: Match, request: RequestView) -> bool:
    """Whether all given keys of `match` hold."""
    if match.model is not None and match.model != request.model:
        return False
    if match.caller is not None and match.caller != request.caller:
        return False
    if match.header and any(request.headers.get(k.lower()) != v for k, v in match.header.items()):
        return False
    if match.metadata and any(request.metadata.get(k) != v for k, v in match.metadata.items()):
        return False
    wanted = match.system_prompt
    if wanted is None:
        return True
    if len(wanted) > 2 and wanted.startswith("/") and wanted.endswith("/"):
        return _pattern(wanted[1:-1]).search(request.system_text) is not None
    return request.system_text.startswith(wanted)


def route_of(policy: Policy, request: RequestView) -> tuple[str, Route | None]:
    """The first route that matches; (`default`, None) when none does."""
    for name, route in policy.routes.items():
        if matches(route.match, request):
            return name, route
    return DEFAULT, None


def decide(rules: LoadedPolicy, request: RequestView, draw: float) -> Decision:
    """The decision for one request. `draw` is uniform on 0-1."""
    name, route = route_of(rules.policy, request)
    if route is None:
        share = rules.policy.default.log.share
        return Decision(
            name, "teacher", "teacher", "no route matches", draw, log=_logged(draw, share, request)
        )
    chosen = _by_mode(rules, name, route, request, draw)
    segment = next((s for s, m in route.segments.items() if matches(m, request)), None)
    log = _logged(draw, route.log.share, request)
    if segment is None and log:
        return chosen
    return msgspec.structs.replace(chosen, segment=segment, log=log)


def _logged(draw: float, share: float, request: RequestView) -> bool:
    return request.may_log and drawn(draw, "log", share)


def _by_mode(
    rules: LoadedPolicy, name: str, route: Route, request: RequestView, draw: float
) -> Decision:
    if route.mode == "teacher":
        return Decision(name, route.mode, "teacher", "mode teacher", draw)
    cannot = _student_cannot(route, request)
    if cannot is not None:
        return Decision(name, route.mode, "teacher", f"student cannot: {cannot}", draw)
    if route.mode == "dark_launch":
        return _dark_launch(name, route, draw)
    if route.mode == "canary":
        return _canary(rules, name, route, request, draw)
    if route.mode == "hybrid":
        return _hybrid(rules, name, route, request, draw)
    return _student(name, route, "mode student", draw)


def _student_cannot(route: Route, request: RequestView) -> str | None:
    """Why the student is not asked at all: what it was not trained to do."""
    if request.tools and route.answer.kind != "tool_call":
        return "has tools"
    if request.n > 1:
        return f"n = {request.n}"
    if request.wants_logprobs:
        return "asks for logprobs"
    if not request.path.endswith("/completions"):
        return request.path
    return None


def _dark_launch(name: str, route: Route, draw: float) -> Decision:
    rule = route.dark_launch
    shadow = drawn(draw, "shadow", rule.share)
    noise = shadow and drawn(draw, "noise", rule.noise)
    reason = "dark launch: shadowed" if shadow else "dark launch: not drawn"
    return Decision(
        name, route.mode, "teacher", reason, draw, 1.0, shadow, False, noise, rule.share
    )


def _student(
    name: str,
    route: Route,
    reason: str,
    draw: float,
    propensity: float = 1.0,
    floor: float | None = None,
) -> Decision:
    share = route.canary.audit
    audit = drawn(draw, "audit", share)
    return Decision(
        name, route.mode, "student", reason, draw, propensity, False, audit, False, share, None, floor
    )  # fmt: skip


def sticky_key(sticky: str, request: RequestView) -> tuple[str | None, str]:
    """What keeps a request's arm, and what it is called; (None, …) when the request does not say."""
    if sticky == "user":
        return request.user or request.caller, "user"
    if sticky == "conversation":
        return request.conversation or None, "conversation"
    if sticky.startswith("header:"):
        header = sticky.removeprefix("header:").lower()
        return request.headers.get(header) or None, header
    return None, "request"


def canary_share(rules: LoadedPolicy, name: str, route: Route) -> float:
    """The student's share now: the rollout's, else the first step's."""
    rollout = rules.rollouts.routes.get(name)
    if rollout is None:
        return route.canary.steps[0]
    if rollout.state == "rolled_back":
        return 0.0
    if rollout.state == "promoted":
        return 1.0
    return rollout.share


def _canary(
    rules: LoadedPolicy, name: str, route: Route, request: RequestView, draw: float
) -> Decision:
    share = canary_share(rules, name, route)
    key, kind = sticky_key(route.canary.sticky, request)
    # A key's place is fixed, the share grows past it: who has the student keeps it, and a user's place differs by route.
    place = uniform(draw, "arm") if key is None else _hashed(f"{name}\0{key}")
    shown = kind if key is not None else "request"
    if place < share:
        return _student(name, route, f"canary: {place:.4f} < {share:g} by {shown}", draw, share)
    rule = route.dark_launch
    shadow = drawn(draw, "shadow", rule.share)
    return Decision(
        name, route.mode, "teacher", f"canary: {place:.4f} >= {share:g} by {shown}", draw,
        1 - share, shadow, False, False, rule.share,
    )  # fmt: skip


def _hybrid(
    rules: LoadedPolicy, name: str, route: Route, request: RequestView, draw: float
) -> Decision:
    rule = route.hybrid
    teacher = functools.partial(Decision, name, route.mode, "teacher", draw=draw)
    if rule.easy_if is not None:
        hard = not_easy(rule.easy_if, request.input_text, request.total_chars, request.tools)
        if hard is not None:
            return teacher(f"hybrid: not easy: {hard}")
    if rule.difficulty is not None:
        model = rules.difficulty.get(rule.difficulty.model)
        if model is None:
            return teacher(f"hybrid: no difficulty model {rule.difficulty.model!r}")
        score = model.score(request.input_text)
        if score > rule.difficulty.max:
            return teacher(f"hybrid: difficulty {score:.3f} > {rule.difficulty.max:g}")
    floor = rule.cascade.min_confidence if rule.cascade else None
    return _student(name, route, "hybrid: easy", draw, floor=floor)
