"""Spent and saved: tokens at list price, node hours shared by busy seconds, break-even, and prices that are missing."""

import datetime
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from monitoring.cli import app
from monitoring.metrics import MonitorMetrics
from monitoring.savings import DAY, Ledger, Savings
from monitoring.settings import MonitorSettings
from monitoring.store import Store
from monitoring.tick import plain, run_tick
from router import policy_file
from router.home import Home
from router.policy import Policy
from router.records import Record, Usage
from router.traffic import TrafficLog
from tests.monitoring.conftest import answer, policy, record

MIDNIGHT = 1_700_006_400.0
"""2023-11-15T00:00:00Z."""
TEACHER_USD = (100 * 2.5 + 10 * 10) / 1e6


def priced(teacher: dict[str, float] | None, student: dict[str, float] | None) -> Policy:
    body = yaml.safe_load(policy("canary"))
    for name, price in (("t", teacher), ("s", student)):
        if price is not None:
            body["backends"][name]["price"] = price
    return policy_file.loads(yaml.safe_dump(body))


LIST, NODE = {"input": 2.5, "output": 10.0}, {"per_hour": 0.5}


def by_student(number: int, at: float, audited: bool = False, **more: Any) -> Record:
    usage = Usage(40, 10)
    answers = [answer("student", "{}", adapter="mail/1", usage=usage, latency_seconds=0.5, **more)]
    if audited:
        answers.append(answer("teacher", "{}", usage=Usage(100, 10), purpose="audit"))
    named = tuple(
        msgspec.structs.replace(a, backend="s" if a.role == "student" else "t") for a in answers
    )
    return record(number, answers=named, at=at, arm="student", served_by="student")


def by_teacher(number: int, at: float, **more: Any) -> Record:
    said = answer("teacher", "{}", usage=Usage(100, 10), latency_seconds=1.0)
    return record(number, answers=(msgspec.structs.replace(said, backend="t"),), at=at, **more)


def balance(policy: Policy, records: list[Record], now: float, nodes: float = 1.0) -> Savings:
    ledger = Ledger(policy, nodes)
    for r in records:
        ledger.add(r)
    return ledger.close(now)


def test_a_day_adds_up() -> None:
    records = [by_teacher(n, MIDNIGHT) for n in range(100)]
    records += [by_student(100 + n, MIDNIGHT + 3600, audited=n < 30) for n in range(300)]
    found = balance(priced(LIST, NODE), records, MIDNIGHT + DAY - 1)
    (day,), (route,) = found.days, found.routes
    assert (day.day, day.requests, day.by_student) == ("2023-11-15", 400, 300)
    assert day.baseline_usd == pytest.approx(400 * TEACHER_USD)
    assert day.teacher_usd == pytest.approx(100 * TEACHER_USD)
    assert day.copies_usd == pytest.approx(30 * TEACHER_USD)
    assert day.node_usd == pytest.approx(0.5 * 23, rel=1e-4)  # from its first answer on
    assert day.saved_usd == pytest.approx(270 * TEACHER_USD - 0.5 * 23, rel=1e-3)
    assert route.saved_usd == day.saved_usd
    assert route.basis == {"audited": 30, "route mean": 270}
    gain = 0.9 * TEACHER_USD  # a tenth is audited
    assert route.saved_per_request_usd == pytest.approx(gain)
    assert route.break_even_a_day == pytest.approx(12 / gain)
    assert route.by_student_a_day == pytest.approx(300, rel=1e-4)


def test_a_node_costs_its_idle_days_too_and_two_nodes_cost_twice() -> None:
    records = [by_student(1, MIDNIGHT, audited=True), by_teacher(2, MIDNIGHT + 2.5 * DAY)]
    found = balance(priced(LIST, NODE), records, MIDNIGHT + 3 * DAY, nodes=2)
    assert [d.day for d in found.days] == ["2023-11-15", "2023-11-16", "2023-11-17", "2023-11-18"]
    assert [d.node_usd for d in found.days] == pytest.approx([24, 24, 24, 0])
    assert found.routes[0].spent_usd == pytest.approx(72 + 2 * TEACHER_USD)


def test_routes_share_a_node_by_the_seconds_that_they_keep_it_busy() -> None:
    body = yaml.safe_load(policy("canary"))
    body["backends"]["t"]["price"], body["backends"]["s"]["price"] = LIST, NODE
    body["routes"]["chat"] = {**body["routes"]["mail"], "match": {"model": "chat"}}
    records = [by_student(n, MIDNIGHT, audited=True) for n in range(4)]
    records = [
        msgspec.structs.replace(r, route="chat" if n else "mail") for n, r in enumerate(records)
    ]
    found = balance(policy_file.loads(yaml.safe_dump(body)), records, MIDNIGHT + 3600)
    assert {d.route: d.node_usd for d in found.days} == pytest.approx(
        {"mail": 0.125, "chat": 0.375}
    )


def test_token_priced_students_need_no_node_to_pay() -> None:
    records = [by_student(n, MIDNIGHT) for n in range(10)]
    found = balance(priced(LIST, {"input": 0.1, "output": 0.1}), records, MIDNIGHT + 60)
    (route,) = found.routes
    assert route.basis == {"student tokens": 10}
    assert route.saved_per_request_usd == pytest.approx((40 * 2.5 + 10 * 10 - 50 * 0.1) / 1e6)
    assert (route.break_even_a_day, route.why_not) == (
        None,
        "no node by the hour: every request pays",
    )
    dear = balance(priced(LIST, {"input": 9, "output": 90, "per_hour": 1}), records, MIDNIGHT + 60)
    assert "saves nothing" in (dear.routes[0].why_not or "")


@pytest.mark.parametrize(
    ("teacher", "student", "missing"),
    [
        (None, NODE, "backend t (teacher) has no token price"),
        (LIST, None, "backend s (student) has neither per_hour nor a token price"),
        ({"per_hour": 3.0}, NODE, "backend t (teacher) has no token price"),
    ],
)
def test_a_missing_price_is_named_and_not_taken_for_zero(
    teacher: dict[str, float] | None, student: dict[str, float] | None, missing: str
) -> None:
    records = [by_teacher(1, MIDNIGHT), by_student(2, MIDNIGHT)]
    (route,) = balance(priced(teacher, student), records, MIDNIGHT + 60).routes
    assert route.missing == (missing,)
    assert (route.saved_usd, route.break_even_a_day, route.why_not) == (None, None, missing)


def test_a_price_of_nothing_is_a_price() -> None:
    (route,) = balance(
        priced({"input": 0, "output": 0}, NODE), [by_teacher(1, MIDNIGHT)], MIDNIGHT + 60
    ).routes
    assert route.missing == ()
    assert route.baseline_usd == 0


def test_the_command_prints_routes_and_days(tmp_path: Path) -> None:
    place = Home(tmp_path / "home")
    place.root.mkdir()
    place.policy.write_text(policy_file.dump(priced(LIST, NODE)))
    now = time.time()
    log = TrafficLog(place.traffic)
    for number in range(20):
        log.append(by_student(number, now - 100 + number, audited=number < 5))
    log.close()
    command = ["savings", "--home", str(place.root), "--since", "1d"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    body = json.loads(done.stdout)
    assert body["routes"][0]["by_student"] == 20
    assert body["routes"][0]["break_even_a_day"] > 0
    assert sum(d["requests"] for d in body["days"]) == 20
    assert "pays from" in CliRunner().invoke(app, command).stdout
    assert CliRunner().invoke(app, [*command, "--route", "no"]).exit_code == 2
    place.traffic.rename(tmp_path / "elsewhere")
    assert json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)["routes"] == []
    named = [*command, "--json", "--log", str(tmp_path / "elsewhere")]
    assert json.loads(CliRunner().invoke(app, named).stdout)["routes"][0]["by_student"] == 20
    missing = CliRunner().invoke(app, [*command, "--log", str(tmp_path / "nowhere")])
    assert (missing.exit_code, "--log" in missing.stderr) == (2, True)


def test_a_tick_tells_what_was_spent_and_saved_and_gauges_hold_it(
    settings: MonitorSettings, store: Store
) -> None:
    rules = priced(LIST, NODE)
    settings.policy.write_text(policy_file.dump(rules))
    records = [by_student(n, MIDNIGHT - 7200 + n) for n in range(10)]
    records += [by_teacher(100, MIDNIGHT - 7100), by_student(200, MIDNIGHT + 60)]
    log = TrafficLog(settings.home.traffic)
    for one in records:
        log.append(one)
    log.close()
    at = MIDNIGHT + 3600
    now = datetime.datetime.fromtimestamp(at, datetime.UTC)
    (report,) = run_tick(settings, store, now=now, html=False)
    (expected,) = balance(rules, records, at).routes
    assert report.balance is not None
    assert report.balance.window.saved_usd == pytest.approx(expected.saved_usd)
    assert report.balance.today.spent_usd == pytest.approx(0.5)  # an hour of the node
    metrics = MonitorMetrics(CollectorRegistry())
    metrics.show("mail", plain(report))

    def shown(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(
            f"graduate_monitoring_{name}", {"route": "mail", **labels}
        )

    today = shown("savings_usd", figure="saved", span="today")
    assert today == pytest.approx(TEACHER_USD - 0.5)
    whole = shown("savings_usd", figure="list_price", span="window")
    assert whole == pytest.approx(12 * TEACHER_USD)
    assert shown("break_even_requests_per_day") == pytest.approx(12 / TEACHER_USD)
    per_day = shown("student_requests_per_day")
    assert per_day == pytest.approx(expected.by_student_a_day)
    metrics.show("mail", {**plain(report), "balance": None})
    assert shown("savings_usd", figure="saved", span="today") is None


def test_one_route_alone_and_missing_prices_have_no_balance(
    settings: MonitorSettings, store: Store
) -> None:
    log = TrafficLog(settings.home.traffic)
    log.append(by_student(1, MIDNIGHT))
    log.close()
    now = datetime.datetime.fromtimestamp(MIDNIGHT + 60, datetime.UTC)
    (alone,) = run_tick(settings, store, now=now, html=False, route="mail")
    assert alone.balance is None
    (report,) = run_tick(settings, store, now=now, html=False)
    assert report.balance is not None
    assert report.balance.window.saved_usd is None
