"""Alert and recording rules: the file, and by promtool when each alert fires and when it does not."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from benchmarks.dashboards.prometheus import filled
from monitoring import alerts
from monitoring.dashboards import BOARDS
from monitoring.panels import MARKS

ROOT = Path(__file__).parents[2]
FILE = ROOT / "helm" / "graduate" / "files" / "rules" / "graduate.yaml"
DOCS = ROOT / "docs" / "dashboards.md"


def test_the_committed_file_is_what_the_code_makes() -> None:
    """Again by: graduate monitor dashboards --out helm/graduate/files."""
    assert {path.name for path in FILE.parent.iterdir()} == set(alerts.texts())
    assert FILE.read_text() == alerts.texts()[FILE.name]


@pytest.mark.parametrize("alert", alerts.ALERTS, ids=lambda alert: str(alert.name))
def test_an_alert_says_what_is_wrong_and_what_to_do(alert: alerts.Alert) -> None:
    assert alert.summary
    assert alert.description.endswith(".")
    assert alert.runbook
    assert alert.severity in ("page", "ticket")
    assert f"### {alert.name}\n" in DOCS.read_text()


def test_alerts_have_names_of_their_own() -> None:
    assert len({alert.name for alert in alerts.ALERTS}) == len(alerts.ALERTS)


def test_runbooks_have_an_address_when_one_is_given() -> None:
    rules = yaml.safe_load(alerts.texts("https://docs.example/dashboards")[FILE.name])
    notes = [rule["annotations"] for rule in rules["groups"][1]["rules"]]
    assert notes[0]["runbook_url"] == "https://docs.example/dashboards#graduatedisagreementfast"
    assert "runbook_url" not in FILE.read_text()


def test_labels_that_are_written_are_those_of_the_alert() -> None:
    """A label that the expression sums away would be empty in the text."""
    for alert in alerts.ALERTS:
        texts = alert.summary + alert.description + alert.runbook
        kept = {"route", "namespace"} if "graduate:" in alert.expr else set()
        for labels in re.findall(r"by \(([^)]*)\)", alert.expr):
            kept |= {label.strip() for label in labels.split(",")}
        assert set(re.findall(r"\$labels\.(\w+)", texts)) <= kept, alert.name


# From here on by promtool.

COMPARED = "graduate_router_comparisons_total"
ANSWERED = "graduate_router_answers_total"
REQUESTS = "graduate_router_requests_total"
MONITOR = "graduate_monitoring"
LIMIT = f"{MONITOR}_limit_share"
Series = Mapping[str, str]


def compared(agree: str, disagree: str, result: str = "disagree") -> Series:
    """Pairs of the route `mail`, as promtool writes values over time."""
    return {
        f'{COMPARED}{{route="mail",result="agree"}}': agree,
        f'{COMPARED}{{route="mail",result="{result}"}}': disagree,
    }


def answered(ok: str, other: str, outcome: str) -> Series:
    """Answers of the student of the route `mail`."""
    labels = 'route="mail",role="student",purpose="reply"'
    return {
        f'{ANSWERED}{{{labels},outcome="ok"}}': ok,
        f'{ANSWERED}{{{labels},outcome="{outcome}"}}': other,
    }


class Case(NamedTuple):
    """Series, and whether the alert fires at a time."""

    says: str
    alert: str
    series: Series
    at: str
    fires: bool
    labels: dict[str, str]
    step: str = "1m"


MAIL = {"route": "mail"}
DISAGREE, GUARD, ERRORS = (
    "GraduateDisagreement", "GraduateGuardFailures", "GraduateStudentErrors",
)  # fmt: skip
LOADS = 'graduate_router_policy_loads_total{instance="a",result="error"}'
AT = {"instance": "a"}
CASES = (
    Case("a fifth differs for 90 minutes", DISAGREE + "Fast", compared("0+80x90", "0+20x90"), "90m", True, MAIL),
    Case("3 % differ, the limit is 5 %", DISAGREE + "Fast", compared("0+97x90", "0+3x90"), "90m", False, MAIL),
    Case("a fifth has the wrong form", DISAGREE + "Fast", compared("0+80x90", "0+20x90", "student_form"), "90m", True, MAIL),
    Case("the teacher's form is wrong", DISAGREE + "Fast", compared("0+80x90", "0+20x90", "teacher_form"), "90m", False, MAIL),
    Case("all of twelve requests differ", DISAGREE + "Fast", compared("0x90", "0x5 1x5 2x5 3x5 4x5 5x5 6x5 7x5 8x5 9x5 10x5 11x5 12x5"), "75m", False, MAIL),
    Case("it was over ten minutes ago", DISAGREE + "Fast", compared("0+80x60 4800+100x30", "0+20x60 1200x30"), "71m", False, MAIL),
    Case("a fifth differs and the policy allows 30 %", DISAGREE + "Fast", {**compared("0+80x90", "0+20x90"), f'{LIMIT}{{route="mail",gate="disagreement"}}': "0.3x90"}, "90m", False, MAIL),
    Case("9 of 10 differ and the policy allows half", DISAGREE + "Fast", {**compared("0+10x90", "0+90x90"), f'{LIMIT}{{route="mail",gate="disagreement"}}': "0.5x90"}, "90m", True, MAIL),
    Case("the policy allows 2 % and 10 % differ", DISAGREE + "Fast", {**compared("0+90x90", "0+10x90"), f'{LIMIT}{{route="mail",gate="disagreement"}}': "0.02x90"}, "90m", True, MAIL),
    Case("9 % differ for seven hours", DISAGREE + "Slow", compared("0+455x84", "0+45x84"), "7h", True, MAIL, "5m"),
    Case("9 % differ for seven hours: no page", DISAGREE + "Fast", compared("0+91x420", "0+9x420"), "7h", False, MAIL),
    Case("6 % differ for seven hours", DISAGREE + "Slow", compared("0+470x84", "0+30x84"), "7h", False, MAIL, "5m"),
    Case("6 % differ for three days", DISAGREE + "Steady", compared("0+470x160", "0+30x160"), "76h", True, MAIL, "30m"),
    Case("4.9 % differ for three days", DISAGREE + "Steady", compared("0+951x160", "0+49x160"), "76h", False, MAIL, "30m"),
    Case("a tenth fails the guard", GUARD + "Fast", answered("0+90x90", "0+10x90", "guard"), "90m", True, MAIL),
    Case("half a percent fails the guard", GUARD + "Fast", answered("0+199x90", "0+1x90", "guard"), "90m", False, MAIL),
    Case("2 % fail the guard for seven hours", GUARD + "Slow", answered("0+980x84", "0+20x84", "guard"), "7h", True, MAIL, "5m"),
    Case("1.2 % fail the guard for three days", GUARD + "Steady", answered("0+4940x160", "0+60x160", "guard"), "76h", True, MAIL, "30m"),
    Case("a tenth times out", ERRORS + "Fast", answered("0+90x90", "0+10x90", "timeout"), "90m", True, MAIL),
    Case("guard failures are no errors", ERRORS + "Fast", answered("0+90x90", "0+10x90", "guard"), "90m", False, MAIL),
    Case("2 % time out for seven hours", ERRORS + "Slow", answered("0+980x84", "0+20x84", "timeout"), "7h", True, MAIL, "5m"),
    Case("1.2 % time out for three days", ERRORS + "Steady", answered("0+4940x160", "0+60x160", "timeout"), "76h", True, MAIL, "30m"),
    Case("drift lasts", "GraduateDrift", {f'{MONITOR}_drift_lasts{{route="mail"}}': "0x5 1x10"}, "12m", True, MAIL),
    Case("one window alarms", "GraduateDrift", {f'{MONITOR}_drift{{route="mail"}}': "0x5 1x70", f'{MONITOR}_drift_lasts{{route="mail"}}': "0x75"}, "70m", False, MAIL),
    Case("the tick's time stands still", "GraduateMonitorStale", {f"{MONITOR}_tick_timestamp_seconds": "0x40"}, "30m", True, {}),
    Case("it ticks each minute", "GraduateMonitorStale", {f"{MONITOR}_tick_timestamp_seconds": "0+60x40"}, "30m", False, {}),
    Case("nothing is scraped of it", "GraduateMonitorStale", {}, "15m", True, {}),
    Case("every tick fails", "GraduateMonitorTickFails", {f'{MONITOR}_ticks_total{{result="error"}}': "0+1x40", f'{MONITOR}_ticks_total{{result="ok"}}': "5x40"}, "30m", True, {}),
    Case("some ticks fail", "GraduateMonitorTickFails", {f'{MONITOR}_ticks_total{{result="error"}}': "0+1x40", f'{MONITOR}_ticks_total{{result="ok"}}': "0+1x40"}, "30m", False, {}),
    Case("requests come and records do not", "GraduateTrafficStale", {f'{MONITOR}_window_end_timestamp_seconds{{route="mail"}}': "0x120", f'{REQUESTS}{{route="mail",status="2xx"}}': "0+9x120"}, "110m", True, MAIL),
    Case("no requests, no records", "GraduateTrafficStale", {f'{MONITOR}_window_end_timestamp_seconds{{route="mail"}}': "0x120", f'{REQUESTS}{{route="mail",status="2xx"}}': "9x120"}, "110m", False, MAIL),
    Case("rolled back", "GraduateRolloutRolledBack", {f'{MONITOR}_rollout_state{{route="mail",state="rolled_back"}}': "0x3 1x5"}, "6m", True, MAIL),
    Case("on its way", "GraduateRolloutRolledBack", {f'{MONITOR}_rollout_state{{route="mail",state="rolled_back"}}': "0x9", f'{MONITOR}_rollout_state{{route="mail",state="canary"}}': "1x9"}, "6m", False, MAIL),
    Case("held", "GraduateRolloutHeld", {f'{MONITOR}_rollout_state{{route="mail",state="held"}}': "1x20"}, "15m", True, MAIL),
    Case("inconclusive", "GraduateRolloutInconclusive", {f'{MONITOR}_rollout_state{{route="mail",state="inconclusive"}}': "1x20"}, "15m", True, MAIL),
    Case("held is not inconclusive", "GraduateRolloutInconclusive", {f'{MONITOR}_rollout_state{{route="mail",state="held"}}': "1x20", f'{MONITOR}_rollout_state{{route="mail",state="inconclusive"}}': "0x20"}, "15m", False, MAIL),
    Case("waits for a person", "GraduateRolloutWaits", {f'{MONITOR}_rollout_blocked{{route="mail",reason="approval"}}': "1x70"}, "65m", True, MAIL),
    Case("approved in time", "GraduateRolloutWaits", {f'{MONITOR}_rollout_blocked{{route="mail",reason="approval"}}': "1x50 0x20"}, "65m", False, MAIL),
    Case("no records", "GraduateRolloutBlocked", {f'{MONITOR}_rollout_blocked{{route="mail",reason="stale"}}': "1x40"}, "35m", True, {**MAIL, "reason": "stale"}),
    Case("a person is waited for", "GraduateRolloutBlocked", {f'{MONITOR}_rollout_blocked{{route="mail",reason="approval"}}': "1x40"}, "35m", False, MAIL),
    Case("labels wait", "GraduateTrainAgain", {f'{MONITOR}_trigger_due{{route="mail",kind="labels"}}': "1x70"}, "65m", True, {**MAIL, "kind": "labels"}),
    Case("nothing is due", "GraduateTrainAgain", {f'{MONITOR}_trigger_due{{route="mail",kind="labels"}}': "0x70"}, "65m", False, MAIL),
    Case("held for two minutes", "GraduateRolloutHeld", {f'{MONITOR}_rollout_state{{route="mail",state="held"}}': "0x12 1x9"}, "15m", False, MAIL),
    Case("the first bad edit ever", "GraduatePolicyRefused", {LOADS: "_x5 1x20"}, "7m", True, AT),
    Case("another bad edit", "GraduatePolicyRefused", {LOADS: "3x20 4x20"}, "25m", True, AT),
    Case("a bad edit half an hour ago", "GraduatePolicyRefused", {LOADS: "3x10 4x40"}, "45m", False, AT),
    Case("two routers, two policies", "GraduatePolicyDiffers", {f'graduate_router_policy_info{{instance="{n}",digest="{n}"}}': "1x30" for n in "ab"}, "15m", True, {}),
    Case("two routers, one policy, and one digest left behind", "GraduatePolicyDiffers", {f'graduate_router_policy_info{{instance="{n}",digest="{d}"}}': v for n, d, v in (("a", "x", "1x30"), ("b", "x", "1x30"), ("b", "y", "0x30"))}, "15m", False, {}),
    Case("a line is lost", "GraduateTrafficLogDrops", {'graduate_router_log_drops{instance="a"}': "0x10 1x10"}, "12m", True, AT),
    Case("a line was lost long ago", "GraduateTrafficLogDrops", {'graduate_router_log_drops{instance="a"}': "1x40"}, "30m", False, AT),
    Case("a breaker is open", "GraduateBreakerOpen", {'graduate_router_breaker_open{backend="students"}': "0x5 1x20"}, "15m", True, {"backend": "students"}),
    Case("a breaker was open once", "GraduateBreakerOpen", {'graduate_router_breaker_open{backend="students"}': "0x5 1 0x20"}, "8m", False, {"backend": "students"}),
    Case("5 % of the replies are 5xx", "GraduateRequestsFail", {f'{REQUESTS}{{route="mail",status="2xx"}}': "0+95x30", f'{REQUESTS}{{route="mail",status="5xx"}}': "0+5x30"}, "20m", True, MAIL),
    Case("one reply in two hundred is 5xx", "GraduateRequestsFail", {f'{REQUESTS}{{route="mail",status="2xx"}}': "0+199x30", f'{REQUESTS}{{route="mail",status="5xx"}}': "0+1x30"}, "20m", False, MAIL),
    Case("one of four replies is 5xx", "GraduateRequestsFail", {f'{REQUESTS}{{route="mail",status="2xx"}}': "0+1x30", f'{REQUESTS}{{route="mail",status="5xx"}}': "0+1x30"}, "20m", False, MAIL),
    Case("no router", "GraduateRouterGone", {}, "15m", True, {}),
    Case("a router", "GraduateRouterGone", {'graduate_router_policy_info{digest="x"}': "1x20"}, "15m", False, {}),
)  # fmt: skip
SEVERITY = {alert.name: alert.severity for alert in alerts.ALERTS}


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Debian's promtool; a machine without it cannot pass these tests."""
    found = shutil.which("promtool")
    if found is None:
        pytest.fail("promtool is not there: apt-get install -y --no-install-recommends prometheus")
    return subprocess.run([found, *arguments], capture_output=True, text=True, check=False)


def test_every_alert_has_a_case_that_fires() -> None:
    assert {case.alert for case in CASES if case.fires} == set(SEVERITY)


@pytest.mark.slow
def test_the_rules_parse() -> None:
    done = promtool("check", "rules", FILE)
    assert done.returncode == 0, done.stdout + done.stderr
    count = len(alerts.ALERTS) + len(alerts.recording_rules())
    assert f"SUCCESS: {count} rules found" in done.stdout


@pytest.mark.slow
def test_the_queries_of_dashboards_parse(tmp_path: Path) -> None:
    exprs = [q.expr for board in BOARDS for panel in board.panels for q in panel.queries]
    exprs += [mark.expr for mark in MARKS]
    rules = [
        {"record": f"query:{number}", "expr": filled(expr, interval="1m", span="6h")}
        for number, expr in enumerate(exprs)
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(exprs)} rules found" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.says}")
def test_an_alert_fires_when_it_should(case: Case, tmp_path: Path) -> None:
    labels = {"alertname": case.alert, "alertstate": "firing"}
    wanted = {**labels, **case.labels, "severity": SEVERITY[case.alert]}
    written = ", ".join(f'{name}="{value}"' for name, value in sorted(wanted.items()))
    asked = ", ".join(f'{name}="{value}"' for name, value in labels.items())
    samples = [{"labels": f"ALERTS{{{written}}}", "value": 1}] if case.fires else []
    check(
        tmp_path,
        case,
        promql_expr_test=[
            {"expr": f"ALERTS{{{asked}}}", "eval_time": case.at, "exp_samples": samples}
        ],
    )


@pytest.mark.slow
def test_texts_are_filled_in(tmp_path: Path) -> None:
    notes = {
        "summary": "The student of route mail disagrees with the teacher more than it may",
        "description": "Over 1h surely more than 18.7% of its requests (lower end of the 99 % interval); "
        "a week's budget burns 3.36 times too fast.",
        "runbook": "graduate monitor report --route mail: look at the worst slices and the flags; to take the student "
        "off the route, set its mode to dark_launch",
    }
    found = {"exp_labels": {"route": "mail", "severity": "page"}, "exp_annotations": notes}
    test = {"alertname": CASES[0].alert, "eval_time": CASES[0].at, "exp_alerts": [found]}
    check(tmp_path, CASES[0], alert_rule_test=[test])


@pytest.mark.slow
def test_the_wilson_end_is_that_of_the_formula(tmp_path: Path) -> None:
    """1,200 of 6,000 in an hour: the recorded low end is what monitoring.intervals computes at 99 %."""
    from monitoring.intervals import wilson

    low, _ = wilson(1200, 6000, 0.99)
    case = CASES[0]
    expr = f"abs(graduate:disagreement:low1h - {low:.8f}) < bool 0.0001"
    sample = {"labels": '{route="mail"}', "value": 1}
    check(
        tmp_path,
        case,
        promql_expr_test=[{"expr": expr, "eval_time": case.at, "exp_samples": [sample]}],
    )


def check(folder: Path, case: Case, **tests: Any) -> None:
    """Run one of promtool's unit tests over the committed rules."""
    series = [{"series": name, "values": values} for name, values in case.series.items()]
    groups = [group["name"] for group in yaml.safe_load(FILE.read_text())["groups"]]
    body = {
        "rule_files": [str(FILE)],
        # Recording rules first: promtool else takes groups in any order, and at steps of half an hour what an alert reads
        # of the step before is too old.
        "group_eval_order": groups,
        "evaluation_interval": case.step,
        "tests": [{"interval": case.step, "input_series": series, **tests}],
    }
    file = folder / "rules.test.yaml"
    file.write_text(yaml.safe_dump(body, width=10_000))
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
