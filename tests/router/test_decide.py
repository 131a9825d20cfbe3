"""Decisions: who has the student keeps it, shares are what the policy says, and a record is enough to decide again."""

import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from router.decide import Decision, canary_share, decide, route_of, uniform
from router.difficulty import DifficultyModel
from router.policy import Policy, Rollouts, RouteRollout
from router.policy_file import LoadedPolicy
from router.wire import RequestView, parse

CHAT = "/v1/chat/completions"
SEED = 20261124


def rules(
    mode: str = "canary", *, rollout: dict[str, Any] | None = None, policy: dict[str, Any] | None = None, **route: Any
) -> LoadedPolicy:  # fmt: skip
    """A policy with one route, `mail`."""
    made: dict[str, Any] = {
        "match": {"model": "mail"}, "teacher": {"backend": "up"}, "student": {"backend": "up", "adapter": "mail"},
        "mode": mode, **route,
    }  # fmt: skip
    data = {
        "version": 1, "backends": {"up": {"kind": "openai", "base_url": "http://up/v1"}}, "routes": {"mail": made},
        "default": {"teacher": {"backend": "up"}}, **(policy or {}),
    }  # fmt: skip
    rollouts = {"mail": RouteRollout(**rollout)} if rollout else {}
    return LoadedPolicy(
        Policy.model_validate(data), Rollouts(version=1, routes=rollouts), "d", "p.yaml"
    )


def request(
    text: str = "hi", *, headers: dict[str, str] | None = None, path: str = CHAT, **body: Any
) -> RequestView:
    messages = [{"role": "user", "content": text}]
    return parse(
        path, headers or {}, json.dumps({"model": "mail", "messages": messages, **body}).encode()
    )


def arm(share: float, draw: float, **body: Any) -> str:
    return decide(rules(rollout={"share": share}), request(**body), draw).arm


# Canary


@given(st.text(min_size=1, max_size=20), st.lists(st.floats(0, 1), min_size=2, max_size=5))
@settings(max_examples=60, deadline=None)
def test_a_user_keeps_its_arm_whatever_the_draw(user: str, draws: list[float]) -> None:
    assert len({arm(0.4, draw, user=user) for draw in draws}) == 1


@given(st.text(min_size=1, max_size=20), st.lists(st.floats(0, 1), min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_who_has_the_student_has_it_on_every_later_step(user: str, steps: list[float]) -> None:
    arms = [arm(share, 0.5, user=user) for share in sorted(steps)]
    assert arms == sorted(arms, reverse=True)  # teacher … teacher student … student


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("by_user", [True, False])
def test_the_students_share_is_what_the_step_says(share: float, by_user: bool) -> None:
    draws = random.Random(SEED)
    loaded, anonymous, count = rules(rollout={"share": share}), request(), 4000
    students = sum(
        decide(loaded, request(user=f"u{i}") if by_user else anonymous, draws.random()).arm
        == "student"
        for i in range(count)
    )
    assert abs(students - count * share) <= 4.5 * math.sqrt(count * share * (1 - share))


def test_the_ends_of_the_share_leave_nobody_out() -> None:
    for i in range(200):
        assert arm(0.0, i / 200, user=f"u{i}") == "teacher"
        assert arm(1.0, i / 200, user=f"u{i}") == "student"


def test_places_on_two_routes_are_independent() -> None:
    student = {"backend": "up", "adapter": "a"}
    routes = {
        n: {"match": {"model": n}, "teacher": {"backend": "up"}, "student": student, "mode": "canary", "canary": {"steps": [0.5]}}
        for n in ("one", "two")
    }  # fmt: skip
    loaded = rules(policy={"routes": routes})
    pairs = [
        tuple(
            decide(loaded, request(model=n, user=f"u{i}"), 0.5).arm == "student"
            for n in ("one", "two")
        )
        for i in range(2000)
    ]
    both = sum(a and b for a, b in pairs)
    assert abs(both - 500) <= 4.5 * math.sqrt(2000 * 0.25 * 0.75)


@pytest.mark.parametrize(
    ("sticky", "same", "other"),
    [
        ("user", {"user": "a"}, {"headers": {"x-graduate-user": "b"}}),
        ("conversation", {"headers": {"x-graduate-conversation": "a"}}, {"headers": {"x-graduate-conversation": "b"}}),
        ("header:X-Tenant", {"headers": {"x-tenant": "a"}}, {"headers": {"x-tenant": "b"}}),
    ],
)  # fmt: skip
def test_sticky_by(sticky: str, same: dict[str, Any], other: dict[str, Any]) -> None:
    loaded = rules(canary={"sticky": sticky, "steps": [0.5]})
    draws = [i / 50 for i in range(50)]
    assert len({decide(loaded, request(**same), d).arm for d in draws}) == 1
    places = {decide(loaded, request(**r), 0.1).reason.split()[1] for r in (same, other)}
    assert len(places) == 2
    without = {decide(loaded, request(), d).arm for d in draws}
    assert without == {"student", "teacher"}  # nothing to stick to: by the request


def test_a_caller_without_a_user_sticks_by_its_key() -> None:
    view = parse(CHAT, {}, b'{"model": "mail", "messages": []}')
    view.caller = "shop"
    assert "by user" in decide(rules(), view, 0.3).reason


def test_sticky_request_draws_anew() -> None:
    loaded = rules(canary={"sticky": "request", "steps": [0.5]})
    found = {decide(loaded, request(user="a"), i / 50).arm for i in range(50)}
    assert found == {"student", "teacher"}


@pytest.mark.parametrize(
    ("rollout", "share"),
    [
        (None, 0.01),
        ({"share": 0.1}, 0.1),
        ({"share": 0.1, "state": "held"}, 0.1),
        ({"share": 0.1, "state": "rolled_back"}, 0.0),
        ({"share": 0.1, "state": "promoted"}, 1.0),
    ],
)
def test_the_rollout_is_laid_over_the_first_step(
    rollout: dict[str, Any] | None, share: float
) -> None:
    loaded = rules(rollout=rollout)
    assert canary_share(loaded, "mail", loaded.policy.routes["mail"]) == share


def test_propensities_of_both_arms_are_those_of_the_share() -> None:
    found = {
        d.arm: d.propensity
        for i in range(100)
        for d in [decide(rules(rollout={"share": 0.2}), request(), i / 100)]
    }
    assert found == {"student": 0.2, "teacher": 0.8}


# Draws


@given(st.floats(0, 1, exclude_max=True), st.text(max_size=10))
@settings(max_examples=50, deadline=None)
def test_a_sub_draw_is_a_number_below_one_and_always_the_same(draw: float, use: str) -> None:
    assert 0 <= uniform(draw, use) < 1
    assert uniform(draw, use) == uniform(draw, use)


def test_sub_draws_of_different_uses_are_uniform_and_independent() -> None:
    draws = random.Random(SEED)
    uses = ("arm", "shadow", "audit", "noise", "log")
    rows = [[uniform(d, use) - 0.5 for use in uses] for d in (draws.random() for _ in range(4000))]
    for i in range(len(uses)):
        for j in range(i, len(uses)):
            found = 12 * sum(r[i] * r[j] for r in rows) / len(rows)  # correlation: variance is 1/12
            assert found == pytest.approx(1.0 if i == j else 0.0, abs=0.08), (uses[i], uses[j])


MODES = ["teacher", "dark_launch", "canary", "hybrid", "student"]


@given(
    st.sampled_from(MODES),
    st.floats(0, 1, exclude_max=True),
    st.none() | st.text(min_size=1, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_a_decision_can_be_computed_again_from_its_draw(
    mode: str, draw: float, user: str | None
) -> None:  # fmt: skip
    made = rules(mode, dark_launch={"share": 0.5, "noise": 0.5}, log={"share": 0.5})
    first = decide(made, request(user=user), draw)
    recorded = json.loads(json.dumps(first.draw))  # as a record keeps it
    assert decide(made, request(user=user), recorded) == first


def count(loaded: LoadedPolicy, chosen: Callable[[Decision], bool], number: int = 3000) -> int:
    view, draws = request(), random.Random(SEED)
    return sum(chosen(decide(loaded, view, draws.random())) for _ in range(number))


def within(found: int, share: float, number: int = 3000) -> bool:
    return abs(found - number * share) <= 4.5 * math.sqrt(number * share * (1 - share))


def test_shadow_noise_audit_and_log_have_their_shares() -> None:
    dark = rules("dark_launch", dark_launch={"share": 0.25, "noise": 0.4})
    assert within(count(dark, lambda d: d.shadow), 0.25)
    assert within(count(dark, lambda d: d.noise), 0.1)
    assert count(dark, lambda d: d.noise and not d.shadow) == 0
    assert count(dark, lambda d: d.arm == "student" or d.audit) == 0
    student = rules("student", canary={"audit": 0.1})
    assert within(count(student, lambda d: d.audit), 0.1)
    assert count(student, lambda d: d.arm == "teacher" or d.shadow) == 0
    assert within(count(rules(log={"share": 0.3}), lambda d: d.log), 0.3)


def test_shadowing_does_not_depend_on_the_arm() -> None:
    loaded = rules(canary={"steps": [0.5]}, dark_launch={"share": 0.5})
    teachers = count(loaded, lambda d: d.arm == "teacher")
    shadowed = count(loaded, lambda d: d.shadow)
    assert within(shadowed, 0.5, teachers)


def test_a_caller_may_forbid_logging() -> None:
    view = request(headers={"x-graduate-log": "false"})
    assert not decide(rules(log={"share": 1}), view, 0.1).log


# Routes, and what the student cannot do


@pytest.mark.parametrize(
    ("match", "holds"),
    [
        ({}, True),
        ({"model": "mail"}, True), ({"model": "Mail"}, False),
        ({"header": {"X-Team": "a"}}, True), ({"header": {"x-team": "b"}}, False), ({"header": {"x-other": "a"}}, False),
        ({"metadata": {"task": "sort"}}, True), ({"metadata": {"task": "other"}}, False),
        ({"caller": "shop"}, False),
        ({"system_prompt": "You sort"}, True), ({"system_prompt": "sort"}, False),
        ({"system_prompt": "/s[o0]rt/"}, True), ({"system_prompt": "/^sort/"}, False), ({"system_prompt": "/"}, False),
        ({"model": "mail", "metadata": {"task": "other"}}, False),
    ],
)  # fmt: skip
def test_matching(match: dict[str, Any], holds: bool) -> None:
    messages = [
        {"role": "system", "content": "You sort mail."},
        {"role": "user", "content": "hi"},
    ]
    view = request(headers={"x-team": "a", "x-graduate-task": "sort"}, messages=messages)
    name, _ = route_of(rules(match=match).policy, view)
    assert name == ("mail" if holds else "default")


def test_the_first_route_that_matches_wins_and_none_is_default() -> None:
    routes = {"b": {"teacher": {"backend": "up"}}, "a": {"teacher": {"backend": "up"}}}
    assert decide(rules(policy={"routes": routes}), request(), 0.5).route == "b"
    found = decide(rules(), request(model="other"), 0.5)
    assert (found.route, found.arm, found.mode) == ("default", "teacher", "teacher")


def test_the_first_segment_that_matches_is_named() -> None:
    segments = {"big": {"metadata": {"size": "big"}}, "rest": {}}
    assert decide(rules(segments=segments), request(metadata={"size": "big"}), 0.5).segment == "big"
    assert decide(rules(segments=segments), request(), 0.5).segment == "rest"
    assert decide(rules(), request(), 0.5).segment is None


@pytest.mark.parametrize("mode", ["dark_launch", "canary", "hybrid", "student"])
@pytest.mark.parametrize(
    ("body", "why"),
    [({"tools": [{"type": "function"}]}, "tools"), ({"n": 2}, "n = 2"), ({"logprobs": True}, "logprobs"), ({"path": "/v1/embeddings"}, "embeddings")],
)  # fmt: skip
def test_the_student_is_not_asked_for_what_it_cannot_do(
    mode: str, body: dict[str, Any], why: str
) -> None:
    made = rules(mode, rollout={"share": 1.0})
    found = decide(made, request(**body), 0.0)
    assert (found.arm, found.shadow) == ("teacher", False)
    assert why in found.reason


# Hybrid


def test_easy_requests_go_to_the_student_with_the_cascades_floor() -> None:
    loaded = rules(
        "hybrid", hybrid={"easy_if": {"max_chars": 5}, "cascade": {"min_confidence": 0.9}}
    )
    easy, hard = (decide(loaded, request(t), 0.5) for t in ("hi", "a long letter"))
    assert (easy.arm, easy.cascade_min_confidence) == ("student", 0.9)
    assert (hard.arm, hard.reason) == ("teacher", "hybrid: not easy: 13 characters > 5")


def test_a_scored_difficulty_above_the_limit_goes_to_the_teacher() -> None:
    made = rules("hybrid", hybrid={"difficulty": {"model": "m", "max": 0.5}})
    assert "no difficulty model 'm'" in decide(made, request(), 0.5).reason
    for bias, expected in ((-1.0, "student"), (0.0, "student"), (1.0, "teacher")):
        model = DifficultyModel("m", bias, {}, 8)
        loaded = LoadedPolicy(made.policy, made.rollouts, "d", "p.yaml", {"m": model})
        assert decide(loaded, request(), 0.5).arm == expected


def test_a_policy_from_yaml_decides_as_one_from_python() -> None:
    made = rules()
    again = Policy.model_validate(
        yaml.safe_load(yaml.safe_dump(made.policy.model_dump(mode="json", by_alias=True)))
    )
    assert again == made.policy
