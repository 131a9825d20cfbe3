"""A policy on logged traffic: decisions come out as they were logged, estimates come out as the truth, gaps are said."""

import dataclasses
import json
import random
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from monitoring.cli import app
from monitoring.counterfactual import (
    Unknown,
    effective_size,
    request_of,
    weighted_mean,
    weighted_quantile,
    weighted_share,
)
from monitoring.replay import Replay, student_probability
from router import policy_file, wire
from router.decide import decide
from router.home import Home
from router.policy_file import LoadedPolicy
from router.records import NO_BODY, Feedback, Record
from router.traffic import TrafficLog
from tests.monitoring.conftest import answer, policy, record
from tests.router.conftest import Start, behaviour, shared_upstream, start

__all__ = ["behaviour", "shared_upstream", "start"]  # fixtures: a real router and what is behind it

A, B = '{"kind":"a"}', '{"kind":"b"}'


def loaded(text: str) -> LoadedPolicy:
    made = policy_file.loads(text)
    rollouts = policy_file.loads_rollouts("", made)
    return LoadedPolicy(made, rollouts, policy_file.digest_of(made, rollouts), "policy.yaml")


def traffic(
    rules: LoadedPolicy, rows: int, generator: random.Random, wrong: float = 0.1, **more: Any
) -> list[Record]:
    """Records as the router would write them: decided by the policy, copies answered when they were drawn."""
    found = []
    for number in range(rows):
        draw = generator.random()
        words = f"mail {number} " + ("please " * generator.randrange(4))
        body: dict[str, Any] = {
            "model": "mail", "messages": [{"role": "user", "content": words}], "user": f"u{number % 97}",
        }  # fmt: skip
        if number % 11 == 0:
            body["n"] = 2
        view = wire.parse("/v1/chat/completions", {}, json.dumps(body).encode())
        decision = decide(rules, view, draw)
        sure = generator.random()
        bad = generator.random() < 2 * wrong * (1 - sure)
        teacher = answer("teacher", A, latency_seconds=2.0, cost_usd=0.01)
        student = answer(
            "student",
            B if bad else A,
            adapter="mail/1",
            confidence=sure,
            latency_seconds=0.5,
            cost_usd=0.001,
        )
        both = decision.shadow or decision.audit
        answers = [teacher] if decision.arm == "teacher" else [student]
        if both:
            late, purpose = (student, "shadow") if decision.arm == "teacher" else (teacher, "audit")
            answers.append(msgspec.structs.replace(late, purpose=purpose))
        made = record(
            number, answers=tuple(answers), request=msgspec.Raw(json.dumps(body).encode()), model="mail",
            user=view.user, mode=decision.mode, arm=decision.arm, reason=decision.reason, draw=draw,
            propensity=decision.propensity, shadow_share=decision.shadow_share, segment=decision.segment,
            policy_digest=rules.digest, served_by=decision.arm, latency_seconds=answers[0].latency_seconds,
        )  # fmt: skip
        found.append(msgspec.structs.replace(made, **more))
    return found


def replayed(rules: LoadedPolicy, records: list[Record]) -> Any:
    made = Replay(rules)
    for r in records:
        made.add(r)
    return made.result()


POLICIES = {
    "teacher": policy("teacher"),
    "dark launch": policy("dark_launch", dark_launch={"share": 0.3}),
    "canary by user": policy("canary", canary={"steps": [0.3], "sticky": "user", "audit": 0.2}),
    "canary by request": policy("canary", canary={"steps": [0.4], "sticky": "request"}),
    "hybrid": policy("hybrid", hybrid={"easy_if": {"max_chars": 20}, "cascade": {"min_confidence": 0.5}}),
    "student": policy("student"),
}  # fmt: skip


@pytest.mark.parametrize("name", POLICIES)
def test_the_present_policy_reproduces_every_logged_decision(name: str) -> None:
    rules = loaded(POLICIES[name])
    found = replayed(rules, traffic(rules, 200, random.Random(1)))
    assert (found.reproduced, found.same_digest, found.unknown) == (200, 200, {})
    assert found.differs == ()


@pytest.mark.parametrize(
    ("mode", "more"),
    [
        ("dark_launch", {"dark_launch": {"share": 0.5, "noise": 0.3}}),
        ("canary", {"canary": {"steps": [0.5], "sticky": "user", "audit": 0.5}}),
        ("canary", {"canary": {"steps": [0.5], "sticky": "conversation"}, "log": {"text": False}}),
        ("hybrid", {"hybrid": {"easy_if": {"max_chars": 10, "languages": ["en"]}, "cascade": {"min_confidence": 0.99}}}),
        ("canary", {"log": {"redact": ["email"]}, "segments": {"eu": {"metadata": {"region": "eu"}}}}),
    ],
)  # fmt: skip
def test_what_a_real_router_logged_is_reproduced(
    start: Start,  # the fixture of that name
    mode: str,
    more: dict[str, Any],
) -> None:
    live = start(mode, **more)
    for number in range(24):
        headers = {"x-graduate-user": f"u{number % 7}", "x-graduate-conversation": f"c{number % 5}"}
        given: dict[str, Any] = {"stream": True} if number % 3 == 0 else {}
        if number % 4 == 0:
            given["metadata"] = {"region": "eu"}
        live.ask(f"hello {number}" + " and so on" * (number % 2), headers=headers, **given)
    live.client.post("/v1/chat/completions", json={"model": "other", "messages": []})
    rules = policy_file.load(live.policy, live.home / "rollouts.yaml")
    found = replayed(rules, live.records(25))
    assert (found.reproduced, found.same_digest, found.differs) == (25, 25, ())
    assert found.unknown == {}


def test_a_decision_that_was_tampered_with_is_told() -> None:
    rules = loaded(POLICIES["dark launch"])
    records = traffic(rules, 20, random.Random(1))
    records[3] = msgspec.structs.replace(records[3], arm="student")
    found = replayed(rules, records)
    assert (found.reproduced, found.same_digest) == (19, 20)
    assert found.differs == ("r3: arm was 'student', is 'teacher'",)


def test_a_hybrid_is_foretold_from_a_dark_launch() -> None:
    """Shares, agreement, cost and latency of a cascade, against the truth of the made traffic."""
    rules = loaded(POLICIES["dark launch"])
    records = traffic(rules, 3000, random.Random(2))
    tried = loaded(policy("hybrid", hybrid={"cascade": {"min_confidence": 0.6}}))
    found = replayed(tried, records).routes["mail"]
    can = 10 / 11  # every eleventh asks for two answers, which a student never gives
    assert found.student_arm == pytest.approx(can, abs=0.005)
    assert found.student_served == pytest.approx(can * 0.4, abs=0.04)
    truth = 1 - can * 0.4 * 0.04  # wrong with 0.2 (1 - sure), sure over 0.6
    assert found.agreement.low < truth < found.agreement.high
    assert found.disagreement.low < 0.04 < found.disagreement.high
    assert found.usd_per_1000 == pytest.approx(10 * (1 - can * 0.4) + can, rel=0.05)
    assert found.seconds_mean == pytest.approx(
        2 * (1 - can) + can * (0.4 * 0.5 + 0.6 * 2.5), rel=0.03
    )
    assert found.seconds_p95 == 2.5
    assert found.agreement.rows == pytest.approx(900 * can, rel=0.1)
    assert found.agreement.ess == pytest.approx(found.agreement.rows)  # all have the same weight
    assert found.copies_usd_per_1000 == pytest.approx(
        10 * can * 0.4 * 0.1, rel=0.1
    )  # a tenth is audited
    present = replayed(rules, records).routes["mail"]
    assert (present.student_arm, present.student_served, present.agreement) == (0, 0, None)
    assert present.usd_per_1000 == pytest.approx(10)
    assert present.copies_usd_per_1000 == pytest.approx(1000 * can * 0.3 * 0.001, rel=0.01)


def test_pairs_are_weighted_by_their_logged_probability() -> None:
    """Hard requests are shadowed four times as often: without weights the disagreement comes out too high."""
    generator = random.Random(3)
    often = loaded(policy("dark_launch", dark_launch={"share": 0.8}))
    seldom = loaded(policy("dark_launch", dark_launch={"share": 0.2}))
    records = traffic(often, 2000, generator, wrong=0.3) + traffic(
        seldom, 2000, generator, wrong=0.02
    )
    found = replayed(loaded(policy("student")), records).routes["mail"]
    truth = (0.3 + 0.02) / 2
    assert found.disagreement.low < truth < found.disagreement.high
    assert found.disagreement.ess < found.disagreement.rows
    assert found.disagreement.high < (0.8 * 0.3 + 0.2 * 0.02) / 1.0  # the unweighted figure


def test_a_canary_tells_of_another_canary_by_snips() -> None:
    rules = loaded(POLICIES["canary by request"])
    generator = random.Random(4)
    records = [
        msgspec.structs.replace(
            r, feedback=(Feedback(r.id, r.at, "mail", 0.6 if r.arm == "student" else 1.0),)
        )
        for r in traffic(rules, 2000, generator)
    ]
    tried = loaded(policy("canary", canary={"steps": [0.9], "sticky": "request"}))
    found = replayed(tried, records).routes["mail"]
    assert found.randomised == pytest.approx(2000 * 10 / 11, abs=1)
    assert found.seen["feedback"].value == pytest.approx(0.9 * 0.6 + 0.1, abs=0.02)
    assert found.seen["seconds"].value == pytest.approx(0.9 * 0.5 + 0.1 * 2, abs=0.08)
    never = replayed(loaded(policy("teacher")), records).routes["mail"]
    assert never.unsupported == sum(r.arm == "student" for r in records)
    assert never.seen["feedback"].value == pytest.approx(1.0)
    assert student_probability(decide(tried, request_of(records[1]), 0.999)) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("more", "tried", "why"),
    [
        ({"request": NO_BODY}, policy("hybrid", hybrid={"easy_if": {"max_chars": 20}}), "text is not logged"),
        ({"request": NO_BODY}, policy("hybrid", match={"system_prompt": "x"}), "text is not logged"),
        ({}, policy("canary", canary={"sticky": "header:x-tenant"}), "header x-tenant is not logged"),
        ({}, policy("teacher", match={"header": {"x-app": "a"}}), "header x-app is not logged"),
        ({"user": "[EMAIL]"}, policy("canary"), "the user is redacted"),
    ],
)  # fmt: skip
def test_what_cannot_be_recomputed_is_counted_with_its_reason(
    more: dict[str, Any], tried: str, why: str
) -> None:
    records = traffic(loaded(POLICIES["dark launch"]), 10, random.Random(5), **more)
    records = [r for r in records if not r.reason.startswith("student cannot")]
    found = replayed(loaded(tried), records)
    assert found.unknown == {why: len(records)}
    assert found.routes == {}


def test_without_text_what_needs_none_is_still_decided() -> None:
    rules = loaded(POLICIES["canary by user"])
    records = traffic(rules, 44, random.Random(6), request=NO_BODY)
    found = replayed(rules, records)
    assert found.unknown == {
        "text is not logged": 4
    }  # whether the student could is told by its reason only
    assert found.reproduced == found.same_digest == 40
    with pytest.raises(Unknown, match="text is not logged"):
        _ = request_of(records[1]).messages


def test_another_adapter_says_nothing_of_this_one() -> None:
    records = traffic(loaded(POLICIES["dark launch"]), 300, random.Random(7))
    student = {"backend": "s", "adapter": "mail", "version": 2}
    found = replayed(loaded(policy("student", student=student)), records).routes["mail"]
    assert (found.agreement, found.usd_per_1000) == (None, None)
    assert any("of another adapter or version" in note for note in found.notes)


@pytest.mark.parametrize(
    ("fallback", "served", "agree"),
    [
        pytest.param({}, 0.0, 1.0, id="the teacher falls in"),
        pytest.param({"to": "error"}, 0.0, 0.0, id="the caller gets an error"),
        pytest.param({"on": ["guard"]}, 0.0, 0.0, id="an error that is no reason to fall back"),
    ],
)
def test_a_student_that_fails_leads_where_the_policy_says(
    fallback: dict[str, Any], served: float, agree: float
) -> None:
    records = [
        msgspec.structs.replace(r, answers=(r.answers[0], answer("student", None, adapter="mail/1", purpose="shadow")))
        for r in traffic(loaded(policy("dark_launch")), 10, random.Random(1))
    ]  # fmt: skip
    records = [r for r in records if not r.reason.startswith("student cannot")]
    found = replayed(loaded(policy("student", fallback=fallback)), records).routes["mail"]
    assert (found.student_arm, found.student_served) == (1.0, served)
    assert found.agreement.value == agree


def test_the_weighted_figures() -> None:
    assert effective_size([1, 1, 1, 1]) == 4
    assert effective_size([3, 1]) == pytest.approx(1.6)
    share = weighted_share([1, 0, 0], [2, 1, 1])
    assert share is not None
    assert share.value == 0.5
    certain = weighted_share([1] * 50, [1] * 50)
    assert certain is not None
    assert (certain.high, certain.low < 0.95) == (1.0, True)
    mean = weighted_mean(np.arange(100), np.ones(100))
    assert mean is not None
    assert mean.high - mean.value == pytest.approx(1.96 * np.arange(100).std() / 10, rel=0.01)
    assert weighted_quantile([3, 1, 2], [1, 1, 8], 0.95) == 3
    assert weighted_quantile([3, 1, 2], [0.1, 1, 8], 0.95) == 2
    assert weighted_share([], []) is None
    assert weighted_mean([], []) is None
    assert weighted_quantile([], [], 0.5) is None


def test_the_interval_covers_as_it_says() -> None:
    generator = np.random.default_rng(8)
    hits = 0
    for _ in range(500):
        seldom = generator.random(400) < 0.5
        weight, risk = np.where(seldom, 4.0, 1.0), np.where(seldom, 0.02, 0.1)
        found = weighted_share(generator.random(400) < risk, weight)
        assert found is not None
        hits += found.low < (4 * 0.02 + 0.1) / 5 < found.high
    assert hits >= 465


def test_the_command_lays_both_policies_side_by_side(tmp_path: Path) -> None:
    place = Home(tmp_path / "home")
    place.root.mkdir()
    place.policy.write_text(POLICIES["dark launch"])
    rules = policy_file.load(place.policy, place.rollouts)
    log, now = TrafficLog(place.traffic), time.time()
    for number, r in enumerate(traffic(rules, 400, random.Random(9))):
        log.append(msgspec.structs.replace(r, at=now - 1000 + number))
    log.close()
    tried = tmp_path / "tried.yaml"
    tried.write_text(policy("hybrid", hybrid={"cascade": {"min_confidence": 0.6}}))
    command = ["replay", str(tried), "--home", str(place.root), "--since", "1d"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    body = json.loads(done.stdout)
    assert body["present"]["reproduced"] == body["present"]["same_digest"] == 400
    assert body["proposed"]["same_digest"] == 0
    assert body["proposed"]["routes"]["mail"]["student_arm"] > 0.8
    shown = CliRunner().invoke(app, command)
    assert "400 of 400 decisions of the present policy are reproduced" in shown.stdout
    refused = CliRunner().invoke(app, [*command, "--route", "nope"])
    assert refused.exit_code == 2
    assert "route 'nope': allowed: mail" in refused.stderr
    missing = CliRunner().invoke(
        app, ["replay", str(tmp_path / "no.yaml"), "--home", str(place.root)]
    )
    assert missing.exit_code == 2
    place.traffic.rename(tmp_path / "elsewhere")
    named = CliRunner().invoke(app, [*command, "--json", "--log", str(tmp_path / "elsewhere")])
    assert json.loads(named.stdout)["present"]["reproduced"] == 400


def test_results_are_json() -> None:
    rules = loaded(POLICIES["student"])
    found = replayed(rules, traffic(rules, 30, random.Random(1)))
    assert json.loads(json.dumps(dataclasses.asdict(found)))["records"] == 30
