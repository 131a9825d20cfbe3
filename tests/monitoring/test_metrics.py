"""The monitor's gauges: set from a report, and gone when what they speak of is gone."""

import datetime
from typing import Any

from prometheus_client import CollectorRegistry

from monitoring.metrics import ROLLOUT_STATES, SLICES, MonitorMetrics
from monitoring.review import ReviewQueue
from monitoring.settings import MonitorSettings
from monitoring.store import Store
from monitoring.tick import plain, run_tick
from router import policy_file
from router.traffic import TrafficLog
from tests.monitoring.conftest import NOW, policy, record

A, B = '{"kind":"a"}', '{"kind":"b"}'


def report(settings: MonitorSettings, store: Store) -> dict[str, Any]:
    """A real tick's report over twenty pairs, five of which differ."""
    log = TrafficLog(settings.home.traffic)
    for number in range(20):
        assert log.append(record(number, A, B if number < 5 else A))
    log.close()
    now = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    return plain(run_tick(settings, store, now=now, html=False)[0])


def exposed(metrics: MonitorMetrics, name: str) -> dict[tuple[str, ...], float]:
    """A gauge's series: label values without the route's, and values."""
    return {
        tuple(v for k, v in sample.labels.items() if k != "route"): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == f"graduate_monitoring_{name}"
    }


def canary(state: str, gate: str) -> dict[str, Any]:
    since = "2026-01-01T00:00:00.000+00:00"
    return {
        "state": {"state": state, "share": 0.1, "since": since},
        "gates": [{"name": "disagreement", "state": gate, "detail": ""}],
    }


def test_a_report_becomes_gauges(settings: MonitorSettings, store: Store) -> None:
    metrics = MonitorMetrics(CollectorRegistry())
    metrics.show("mail", report(settings, store))
    assert exposed(metrics, "disagreement_share") == {("mail/1",): 0.25}
    assert exposed(metrics, "pairs") == {("mail/1",): 20}
    assert exposed(metrics, "field_disagreement_share") == {("mail/1", "kind"): 0.25}
    assert exposed(metrics, "window_served_records") == {("teacher",): 20}
    assert exposed(metrics, "drift_enough") == {(): 0}
    assert exposed(metrics, "window_end_timestamp_seconds") == {(): NOW - 1000 + 19}
    assert exposed(metrics, "rollout_state") == {}


def test_what_left_the_report_leaves_the_metrics(settings: MonitorSettings, store: Store) -> None:
    metrics = MonitorMetrics(CollectorRegistry())
    found = report(settings, store)
    metrics.show("mail", found)
    one = {**found["disagreement"][0], "adapter": "mail/2"}
    metrics.show("mail", {**found, "disagreement": [one], "served_by": {"student": 1}})
    for name in ("disagreement_share", "disagreement_low", "disagreement_high", "pairs"):
        assert set(exposed(metrics, name)) == {("mail/2",)}
    assert exposed(metrics, "window_served_records") == {("student",): 1}


def test_only_the_worst_slices_are_shown(settings: MonitorSettings, store: Store) -> None:
    metrics = MonitorMetrics(CollectorRegistry())
    found = report(settings, store)
    part = {"name": "length", "disagreement": {"share": 0.5}}
    one = {**found["disagreement"][0], "slices": [{**part, "value": str(n)} for n in range(30)]}
    metrics.show("mail", {**found, "disagreement": [one]})
    values = [labels[2] for labels in exposed(metrics, "slice_disagreement_share")]
    assert sorted(values, key=int) == [str(n) for n in range(SLICES)]


def test_a_rollout_has_one_state_and_the_time_it_came_to_it(
    settings: MonitorSettings, store: Store
) -> None:
    metrics = MonitorMetrics(CollectorRegistry())
    found = report(settings, store)
    metrics.show("mail", {**found, "rollout": canary("canary", "open")})
    metrics.show("mail", {**found, "rollout": canary("rolled_back", "breached")})
    states = exposed(metrics, "rollout_state")
    assert {labels[0] for labels, value in states.items() if value == 1} == {"rolled_back"}
    assert set(states) == {(name,) for name in ROLLOUT_STATES}
    assert {"inconclusive", "waiting"} < set(ROLLOUT_STATES)
    moved = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC).timestamp()
    assert exposed(metrics, "rollout_moved_timestamp_seconds") == {("rolled_back",): moved}
    assert exposed(metrics, "gate_state") == {("disagreement",): -1}
    metrics.show("mail", {**found, "rollout": None})
    assert exposed(metrics, "rollout_state") == exposed(metrics, "gate_state") == {}


def test_what_blocks_a_canary_is_a_gauge(settings: MonitorSettings, store: Store) -> None:
    metrics = MonitorMetrics(CollectorRegistry())
    found = report(settings, store)
    metrics.show("mail", {**found, "rollout": {**canary("waiting", "kept"), "blocked": "approval"}})
    blocked = exposed(metrics, "rollout_blocked")
    assert blocked[("approval",)] == 1
    assert sum(blocked.values()) == 1
    metrics.show("mail", {**found, "rollout": canary("canary", "open")})
    assert set(exposed(metrics, "rollout_blocked").values()) == {0}
    metrics.show("mail", {**found, "rollout": canary("held", "open")})
    assert exposed(metrics, "rollout_blocked") == {}


def test_triggers_that_are_due_are_a_gauge(settings: MonitorSettings) -> None:
    metrics = MonitorMetrics(CollectorRegistry())
    metrics.show_triggers({"mail": ["labels"]})
    assert exposed(metrics, "trigger_due") == {
        ("labels",): 1, ("drift",): 0, ("disagreement",): 0, ("shutdown",): 0,
    }  # fmt: skip
    settings.policy.write_text(policy().replace("mail:", "post:"))
    metrics.show_policy(policy_file.load(settings.policy).policy)
    assert exposed(metrics, "trigger_due") == {}


def test_limits_come_from_the_policy_and_routes_go_with_it(
    settings: MonitorSettings, store: Store
) -> None:
    metrics = MonitorMetrics(CollectorRegistry())
    metrics.show("mail", report(settings, store))
    gates = {"disagreement": {"max": 0.03}, "errors": {"max": 0.01}}
    settings.policy.write_text(policy("canary", canary={"steps": ["10%"], "gates": gates}))
    metrics.show_policy(policy_file.load(settings.policy).policy)
    assert exposed(metrics, "limit_share") == {("disagreement",): 0.03, ("errors",): 0.01}
    settings.policy.write_text(policy().replace("mail:", "post:"))
    metrics.show_policy(policy_file.load(settings.policy).policy)
    left = {
        sample.name
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.labels.get("route") == "mail"
    }
    assert left == set()


def test_both_results_of_a_tick_are_counted_from_the_start() -> None:
    """A counter that is born at 1 has no increase, and the alert would miss the first error."""
    metrics = MonitorMetrics(CollectorRegistry())
    assert exposed(metrics, "ticks_total") == {("ok",): 0, ("error",): 0}


def test_what_people_have_to_do_and_did_is_shown_by_kind(
    settings: MonitorSettings, store: Store
) -> None:
    report(settings, store)
    first, *_ = ReviewQueue(store).list("mail")
    ReviewQueue(store).decide(first.id, "accept_teacher", by="ada")
    now = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    (again,) = run_tick(settings, store, now=now, html=False)
    metrics = MonitorMetrics(CollectorRegistry())
    metrics.show("mail", plain(again))
    waiting, reviews = exposed(metrics, "flags_waiting"), exposed(metrics, "reviews")
    assert (waiting["disagreement",], waiting["guard",]) == (4, 0)
    assert (reviews["accept_teacher",], reviews["correct",]) == (1, 0)
    assert exposed(metrics, "pairs_left") == {(): 0}
    assert exposed(metrics, "drift_evidence_wanted") == {(): 1000}


def test_thresholds_of_the_policy_are_shown(settings: MonitorSettings) -> None:
    metrics = MonitorMetrics(CollectorRegistry())
    hybrid = {"cascade": {"min_confidence": 0.7}}
    settings.policy.write_text(policy("hybrid", hybrid=hybrid))
    metrics.show_policy(policy_file.load(settings.policy).policy)
    assert exposed(metrics, "hybrid_threshold") == {("min_confidence",): 0.7}
