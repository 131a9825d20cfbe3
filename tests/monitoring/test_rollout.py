"""What a canary does next."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rollouts import STUDENTS, Setting, sequential_run
from monitoring.evidence import gather
from monitoring.rollout import Count, Evidence, Freeze, Scores, first_step, frozen, next_step
from router.policy import Canary, RouteRollout
from tests.monitoring.conftest import record

RULE = Canary.model_validate(
    {
        "steps": ["10%", "50%", "100%"], "hold": "60s", "min_reviews": 3,
        "gates": {"disagreement": {"max": "10%"}, "errors": {"max": "5%"}},
    }
)  # fmt: skip
GOOD = Evidence({"": Count(2, 400)}, errors={"": Count(0, 400)}, reviews=3)


def moved(
    evidence: Evidence, state: RouteRollout | None = None, seconds: float = 100, **rule: Any
) -> Any:
    chosen = RULE.model_copy(update=rule)
    return next_step(
        chosen,
        evidence,
        state or first_step(RULE, 1, "t0"),
        seconds_on_step=seconds,
        now="t1",
        segments=tuple(s for s in evidence.disagreement if s),
    )


def at(step: int, **more: Any) -> RouteRollout:
    return RouteRollout(state="canary", share=RULE.steps[step], step=step, version=1, **more)


@pytest.mark.parametrize(
    ("evidence", "state", "seconds", "action", "share"),
    [
        pytest.param(GOOD, at(0), 100, "advance", 0.5, id="good evidence advances"),
        pytest.param(GOOD, at(2), 100, "promote", 1.0, id="good evidence on the last step promotes"),
        pytest.param(GOOD, at(0), 10, "hold", 0.1, id="too early holds"),
        pytest.param(Evidence(), at(0), 1e6, "hold", 0.1, id="no evidence holds"),
        pytest.param(Evidence(), at(0), 30 * 86400, "inconclusive", 0.1, id="no evidence by the cap is inconclusive"),
        pytest.param(Evidence({"": Count(40, 400)}, errors={"": Count(0, 400)}), at(2), 30 * 86400, "inconclusive", 1.0, id="evidence for neither side by the cap is inconclusive"),
        pytest.param(GOOD, at(2), 30 * 86400, "promote", 1.0, id="kept gates promote after the cap too"),
        pytest.param(Evidence({"": Count(1, 10)}, errors={"": Count(0, 400)}), at(0), 100, "hold", 0.1, id="little evidence holds"),
        pytest.param(Evidence({"": Count(150, 400)}, errors={"": Count(0, 400)}), at(1), 0, "rollback", 0.0, id="a breach rolls back at once"),
        pytest.param(Evidence({"": Count(2, 400), "vip": Count(40, 60)}, errors={"": Count(0, 400)}), at(0), 100, "rollback", 0.0, id="one broken segment rolls back"),
        pytest.param(Evidence({"": Count(2, 400)}, errors={"": Count(0, 400)}, reviews=2), at(1), 100, "hold", 0.5, id="too few reviews hold before the last step"),
    ],
)  # fmt: skip
def test_moves(
    evidence: Evidence, state: RouteRollout, seconds: float, action: str, share: float
) -> None:
    step = moved(evidence, state, seconds)
    assert (step.action, step.state.share) == (action, pytest.approx(share))
    assert step.reason


def test_on_breach_hold_keeps_the_share_and_waits_for_people() -> None:
    bad = Evidence({"": Count(150, 400)}, errors={"": Count(0, 400)})
    step = moved(bad, at(1), on_breach="hold")
    assert (step.action, step.state.state, step.state.share) == ("hold", "held", 0.5)
    assert moved(GOOD, step.state).action == "hold"


def test_latency_and_feedback_gates() -> None:
    gates = Canary.model_validate(
        {
            "steps": [0.5, 1],
            "hold": "0s",
            "gates": {"latency_p95": {"max_ratio": 1.2}, "feedback": {"min": 0.8}},
        }
    ).gates
    fast = Evidence(
        student_seconds=(0.1,) * 4000, teacher_seconds=(1.0,) * 4000, feedback=(1.0,) * 400
    )
    assert moved(fast, at(0), gates=gates).action == "advance"
    slow = Evidence(
        student_seconds=(3.0,) * 4000, teacher_seconds=(1.0,) * 4000, feedback=(1.0,) * 400
    )
    assert moved(slow, at(0), gates=gates).action == "rollback"
    sad = Evidence(
        student_seconds=(0.1,) * 4000, teacher_seconds=(1.0,) * 4000, feedback=(0.2,) * 400
    )
    assert moved(sad, at(0), gates=gates).action == "rollback"


def test_latency_and_feedback_hold_in_each_segment() -> None:
    limits = {"latency_p95": {"max_ratio": 1.2}, "feedback": {"min": 0.8}}
    rule = Canary.model_validate({"steps": [0.5, 1], "hold": "0s", "gates": limits})

    def step(**of_vip: Any) -> Any:
        whole: dict[str, Any] = {
            "student_seconds": (0.1,) * 4000,
            "teacher_seconds": (1.0,) * 4000,
            "feedback": (1.0,) * 400,
        }
        seen = Evidence(**whole, by_segment={"vip": Scores(**{**whole, **of_vip})})
        return next_step(rule, seen, at(0), seconds_on_step=1, now="t1", segments=("vip",))  # fmt: skip

    assert step().action == "advance"
    assert {g.name for g in step().gates} == {
        "latency_p95", "feedback", "latency_p95 in vip", "feedback in vip",
    }  # fmt: skip
    assert [g.alpha for g in step().gates] == [pytest.approx(0.05 / 4)] * 4
    assert step(student_seconds=(3.0,) * 4000).reason.startswith("breached: latency_p95 in vip")
    assert step(feedback=(0.2,) * 400).reason.startswith("breached: feedback in vip")
    assert step(feedback=()).action == "hold"


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 2))
def test_the_share_never_grows_without_kept_gates(bad: int, good: int, step: int) -> None:
    evidence = Evidence({"": Count(bad, bad + good)}, errors={"": Count(0, 400)}, reviews=9)
    found = moved(evidence, at(step))
    if found.state.share > RULE.steps[step] or found.action == "promote":
        assert all(g.state == "kept" for g in found.gates)
    assert found.state.share in (0.0, *RULE.steps)


def test_evidence_counts_one_draw_a_conversation_and_this_version_only() -> None:
    records = [
        record(1, student='{"kind":"a"}', conversation="c"),
        record(2, student='{"kind":"b"}', conversation="c"),
        record(3, student='{"kind":"b"}'),
        record(4, student="no json", segment="vip"),
        record(5),
    ]
    found = gather(records, "mail/1", reviews=2)
    assert found.disagreement == {"": Count(2, 3), "vip": Count(1, 1)}  # garbage differs too
    assert found.guard_failures == {"": Count(0, 4), "vip": Count(0, 1)}
    assert (len(found.student_seconds), len(found.teacher_seconds), found.reviews) == (4, 5, 2)
    assert gather(records, "mail/2", reviews=0).errors == {}
    assert (len(found.scores("vip").student_seconds), len(found.scores("vip").teacher_seconds)) == (
        1,
        1,
    )
    assert len(found.scores("unseen").feedback) == 0


def test_an_unaudited_start_does_not_use_up_a_conversation() -> None:
    records = [
        record(1, conversation="c"),
        record(2, student='{"kind":"a"}', conversation="c", comparison=None),
        record(3, student='{"kind":"b"}', conversation="c"),
        record(4, student='{"kind":"b"}', conversation="c"),
    ]
    assert gather(records, "mail/1", reviews=0).disagreement == {"": Count(1, 1)}


def test_a_perfect_student_with_much_traffic_is_promoted() -> None:
    gates = RULE.gates.model_copy(update={"errors": None})
    step = moved(Evidence({"": Count(0, 50_000)}, reviews=3), at(2), gates=gates)
    assert step.action == "promote", step.reason


def test_without_gates_nothing_moves() -> None:
    step = moved(GOOD, at(0), gates=Canary().gates)
    assert (step.action, step.reason.partition(":")[0]) == ("hold", "no gates set")


def test_a_declared_segment_without_rows_holds() -> None:
    step = next_step(RULE, GOOD, at(0), seconds_on_step=100, now="t1", segments=("vip",))
    assert step.action == "hold"
    assert "disagreement in vip: 0 of 0" in step.reason


def test_inconclusive_is_held_for_people_and_missing_reviews_are_not_inconclusive() -> None:
    step = moved(Evidence(), at(0), 30 * 86400)
    assert (step.state.state, step.reason.partition(":")[0]) == (
        "inconclusive",
        "inconclusive after 2592000 s",
    )
    assert moved(GOOD, step.state, 1e9).action == "hold"
    unread = Evidence({"": Count(2, 400)}, errors={"": Count(0, 400)}, reviews=0)
    assert moved(unread, at(1), 1e9).action == "hold"


@pytest.mark.parametrize(
    ("cap", "asked", "seconds", "action"),
    [
        pytest.param({"requests": 500}, 499, 1e6, "hold", id="before the cap of requests"),
        pytest.param({"requests": 500}, 500, 0, "inconclusive", id="at the cap of requests"),
        pytest.param({"duration": "1h"}, 9, 3599, "hold", id="before the cap of time"),
        pytest.param({"duration": "1h"}, 9, 3600, "inconclusive", id="at the cap of time"),
    ],
)
def test_the_cap_is_the_policys(cap: Any, asked: int, seconds: float, action: str) -> None:
    rule = Canary.model_validate({"gates": {"disagreement": {"max": "10%"}}, "give_up_after": cap})
    seen = Evidence({"": Count(1, 10)}, errors={"": Count(0, asked)})
    step = next_step(rule, seen, at(0), seconds_on_step=seconds, now="t1")
    assert (step.action, step.state.share) == (action, RULE.steps[0])


def test_a_step_waits_for_a_person_and_keeps_what_it_has_shown() -> None:
    waiting = moved(GOOD, at(0), approval="manual")
    assert (waiting.action, waiting.state.state, waiting.blocked) == ("wait", "waiting", "approval")
    assert waiting.state.share == at(0).share
    again = moved(Evidence({"": Count(20, 200)}), waiting.state, approval="manual")
    assert (again.action, again.blocked) == ("hold", "approval")
    approved = waiting.state.model_copy(update={"approved": 0})
    step = moved(Evidence({"": Count(20, 200)}), approved, approval="manual")
    assert (step.action, step.state.state, step.state.share) == ("advance", "canary", 0.5)
    assert step.state.approved is None  # the next step needs a word of its own
    bad = Evidence({"": Count(150, 400)}, errors={"": Count(0, 400)})
    assert moved(bad, approved, approval="manual").action == "rollback"
    early = at(0).model_copy(update={"approved": 0})
    assert moved(Evidence(), early, approval="manual").action == "hold"
    assert moved(GOOD, early, approval="manual").action == "advance"


def test_old_evidence_gives_no_more_traffic_but_rolls_back() -> None:
    rule = Canary.model_validate({"stale_after": "10m"})
    assert frozen(rule, 600, 60) is None
    assert frozen(rule, 0, None) is None
    stale, away = frozen(rule, 601, 60), frozen(rule, 0, 601)
    assert stale is not None
    assert away is not None
    assert (stale.kind, away.kind) == ("stale", "away")
    step = next_step(RULE, GOOD, at(0), seconds_on_step=1e9, now="t1", freeze=stale)
    assert (step.action, step.blocked, step.state) == ("hold", "stale", at(0))
    assert "no record for 601 s" in step.reason
    none = next_step(
        RULE, Evidence(), at(0), seconds_on_step=1e9, now="t1", freeze=Freeze("away", "x")
    )
    assert none.action == "hold"  # not given up either: nobody looked
    bad = Evidence({"": Count(150, 400)}, errors={"": Count(0, 400)})
    assert (
        next_step(RULE, bad, at(0), seconds_on_step=0, now="t1", freeze=away).action == "rollback"
    )


def test_a_gate_says_its_rows_its_bounds_and_its_error() -> None:
    disagreement, errors = moved(GOOD, at(0)).gates
    assert (disagreement.rows, disagreement.alpha) == (400, pytest.approx(0.025))
    assert 0 < disagreement.low < 2 / 400 < disagreement.high < 0.1
    assert errors.low == 0.0
    assert 0 < errors.high < 0.05


def latency_state(student: Any, teacher: Any) -> str:
    gates = Canary.model_validate({"gates": {"latency_p95": {"max_ratio": 1.2}}}).gates
    rule = RULE.model_copy(update={"gates": gates})
    found = next_step(
        rule, Evidence(student_seconds=tuple(student), teacher_seconds=tuple(teacher)), at(0),
        seconds_on_step=0, now="t1",
    )  # fmt: skip
    return found.gates[0].state


def test_the_latency_gate_speaks_after_a_few_hundred_answers() -> None:
    generator = np.random.default_rng(0)
    seconds = generator.lognormal(0, 0.5, 300)
    assert latency_state(0.5 * generator.lognormal(0, 0.5, 300), seconds) == "kept"
    assert latency_state(2.5 * generator.lognormal(0, 0.5, 300), seconds) == "breached"
    assert latency_state(1.2 * generator.lognormal(0, 0.5, 300), seconds) == "open"
    assert latency_state([0.1] * 60, [1.0] * 60) == "open"


def test_the_latency_gate_errs_rarely_at_its_limit_however_often_one_looks() -> None:
    wrong = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        student = 1.2 * generator.lognormal(0, 0.5, 1200)
        teacher = generator.lognormal(0, 0.5, 1200)
        looks = [latency_state(student[:n], teacher[:n]) for n in range(100, 1201, 100)]
        wrong += "kept" in looks or "breached" in looks
    assert wrong <= 6  # 5 % on either side


@pytest.mark.parametrize("steps", [(1.0,), (0.01, 0.1, 0.5, 1.0)], ids=["one step", "four steps"])
def test_rollouts_looked_at_every_minute_keep_their_promise(steps: tuple[float, ...]) -> None:
    setting = Setting(steps=steps, most_requests=3_000)
    promoted = {
        name: sum(
            sequential_run(setting, setting.limit * multiple, np.random.default_rng(seed)).outcome
            == "promoted"
            for seed in range(40)
        )
        for name, multiple in STUDENTS.items()
    }
    assert promoted["bad"] <= 2
    assert promoted["limit"] <= 4
    assert promoted["good"] >= 38
